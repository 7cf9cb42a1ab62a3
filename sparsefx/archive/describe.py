"""From a model to its plan and its tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx.archive.plan import (
    CONTAINER,
    GRAPH_MODULE,
    ModulePlan,
    TensorPlan,
    Tensors,
    can_have,
    class_name,
    hook_counts,
    in_order,
    simple_attributes,
)
from sparsefx.passes.graph.graph_module import TwoModeGraphModule
from sparsefx.passes.serialize.graph_data import check_path, encode_graph
from sparsefx.passes.serialize.plain_values import DataError


def describe(model: nn.Module) -> tuple[list[ModulePlan], dict[str, Tensor]]:
    """Each module of a model, parents first, and the tensors they hold, tied ones once.

    Returns:
        The plans, and contiguous tensors on the CPU, of the model's shapes, that share no memory.

    Raises:
        DataError: something in the model cannot be saved; it is named.
    """
    stored = _Stored()
    first: dict[nn.Module, str] = {}
    plans = []
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            check_path(path)
        if module in first:
            plans.append(ModulePlan(path, _kind(module), same_as=first[module]))
        else:
            first[module] = path
            plans.append(_describe(path, module, stored))
    return plans, stored.tensors


def _describe(path: str, module: nn.Module, stored: _Stored) -> ModulePlan:
    kind = _kind(module)
    prefix = f"{path}." if path else ""
    parameters = {
        name: None if tensor is None else stored.add(prefix + name, tensor, tensor.requires_grad)
        for name, tensor in module._parameters.items()
    }
    transient = module._non_persistent_buffers_set
    buffers = {
        name: None if tensor is None else stored.add(prefix + name, tensor, name not in transient)
        for name, tensor in module._buffers.items()
    }
    constants: Tensors = {
        name: stored.add(prefix + name, value, False)
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }
    return ModulePlan(
        path,
        kind,
        attributes={} if kind in (GRAPH_MODULE, CONTAINER) else simple_attributes(module),
        hooks=hook_counts(module),
        tensors={"parameters": parameters, "buffers": buffers, "constants": constants},
        graph=_encode_graph(path, module) if isinstance(module, fx.GraphModule) else None,
    )


def _kind(module: nn.Module) -> str:
    return GRAPH_MODULE if isinstance(module, fx.GraphModule) else class_name(module)


def _encode_graph(path: str, module: fx.GraphModule) -> list[Any]:
    try:
        graph = module.mode_graph(False) if isinstance(module, TwoModeGraphModule) else module.graph
        return encode_graph(graph)
    except DataError as error:
        raise DataError(f"graph of {path or 'the model'}: {error}") from error


class _Stored:
    """The tensors that go into the file."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._plans: dict[int, TensorPlan] = {}
        self._storages: set[int] = set()

    def add(self, name: str, tensor: Tensor, flag: bool) -> TensorPlan:
        """Store a tensor, unless it is stored under another name already."""
        check_path(name)
        known = self._plans.get(id(tensor))
        if known is not None:
            return replace(known, flag=flag)
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout != torch.strided:
            raise DataError(
                f"{name} is a {type(tensor).__qualname__} of layout {tensor.layout}, not a plain tensor"
            )
        if tensor.is_meta or tensor.is_quantized:
            raise DataError(f"{name} has no values to save, or quantised ones")
        order = _order_in_memory(tensor)
        values = tensor.detach().resolve_conj().resolve_neg()
        values = torch.view_as_real(values.contiguous()) if tensor.is_complex() else values
        if not tensor.is_complex() and order:
            values = values.permute(order)
        strides = () if tensor.is_complex() else _strides_to_keep(tensor, order)
        plan = TensorPlan(name, flag, () if tensor.is_complex() else order, strides, tensor.is_complex())
        self.tensors[name] = self._unshared(values.contiguous().cpu())
        self._plans[id(tensor)] = plan
        return plan

    def _unshared(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        self._storages.add(tensor.untyped_storage().data_ptr())
        return tensor


def _order_in_memory(tensor: Tensor) -> tuple[int, ...]:
    """A dense tensor's dimensions from the slowest to the fastest; empty if they are in that order."""
    order = tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    if tensor.is_contiguous() or not tensor.permute(order).is_contiguous():
        return ()
    return order


def _strides_to_keep(tensor: Tensor, order: tuple[int, ...]) -> tuple[int, ...]:
    """A dense tensor's strides, where the order of its dimensions does not say them all."""
    plain = in_order(torch.empty([tensor.shape[dim] for dim in order] or tensor.shape, device="meta"), order)
    return tensor.stride() if can_have(plain, tensor.stride()) and plain.stride() != tensor.stride() else ()
