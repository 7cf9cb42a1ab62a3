"""The user's model as the architecture that a file is loaded into: its modules, without its weights."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from sparsefx._common.copying import without_weight_hooks
from sparsefx.masking.layers import MaskedLayer, unmask_layer
from sparsefx.masking.masks import detach_masks
from sparsefx.passes.capture.capture import capture
from sparsefx.passes.graph.graph_module import TwoModeGraphModule
from sparsefx.passes.running.deep_copy import deep_copy
from sparsefx.passes.serialize.vocabulary import qualified


class Architecture:
    """A user's model; it is not changed.

    Args:
        model: dense or sparsified, with any weights, on any device, the meta device included.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = without_weight_hooks(getattr(model, "_orig_mod", model))  # torch.compile
        self.tensors = dict(named_tensors(self.model))
        devices = (tensor.device for tensor in self.tensors.values() if not tensor.is_meta)
        self._device = next(devices, torch.device("cpu"))

    def device_of(self, name: str) -> torch.device:
        """Where a tensor of a name goes: where the model has it, else where the model's first one is."""
        tensor = self.tensors.get(name)
        return self._device if tensor is None or tensor.is_meta else tensor.device

    def shape_of(self, name: str) -> torch.Size | None:
        """The shape of the model's tensor of a name; None where it has none."""
        tensor = self.tensors.get(name)
        return None if tensor is None or is_lazy(tensor) else tensor.shape

    def copy_with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A copy without masks, with the given tensors, of any shape, by name; others are placeholders."""
        memo: dict[int, Tensor] = {}
        for name, tensor in self.tensors.items():
            if id(tensor) not in memo:
                given = tensors.get(name)
                memo[id(tensor)] = _placeholder(tensor) if given is None else given
        copied = deep_copy(self.model, memo)
        for module in copied.modules():
            if isinstance(module, MaskedLayer):
                unmask_layer(module)
            else:
                detach_masks(module)
        return copied.eval()

    @cached_property
    def _traceable(self) -> nn.Module:
        return self.copy_with({})

    def graph_of(self, path: str) -> fx.Graph | None:
        """The graph that capturing one of the model's modules gives; None where there is none."""
        try:
            module = self._traceable.get_submodule(path)
        except AttributeError:
            return None
        return module.mode_graph(False) if isinstance(module, TwoModeGraphModule) else capture(module).graph

    @cached_property
    def containers(self) -> dict[str, type]:
        """The classes of results that the code of the model's modules can see: dicts and named tuples."""
        found = [value for value in self._visible if isinstance(value, type)]
        return {qualified(kind): kind for kind in found if _is_container(kind)}

    def names_operator(self, namespace: str, name: str) -> bool:
        """Whether code that the model's modules can see calls ``torch.ops.<namespace>.<name>``."""
        wanted = {"ops", namespace, name}
        return any(wanted <= {*code.co_names} for code in self._codes)

    @cached_property
    def _visible(self) -> list[Any]:
        """What the files see that define the classes of the model's modules."""
        kinds = {kind for module in self.model.modules() for kind in type(module).__mro__}
        spaces = {kind.__module__ for kind in kinds} & sys.modules.keys()
        return [value for name in sorted(spaces) for value in vars(sys.modules[name]).values()]

    @cached_property
    def _codes(self) -> list[CodeType]:
        """The code of these files, and of those whose functions they see."""
        spaces = {str(getattr(value, "__module__", "")) for value in self._visible if callable(value)}
        spaces |= {value.__name__ for value in self._visible if isinstance(value, ModuleType)}
        values = [value for name in spaces & sys.modules.keys() for value in vars(sys.modules[name]).values()]
        methods = [one for value in values if isinstance(value, type) for one in vars(value).values()]
        return [function.__code__ for function in [*values, *methods] if isinstance(function, FunctionType)]

    def arguments_of(self, path: str) -> list[str] | None:
        """The arguments of the forward of one of the model's modules, as fx names them."""
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            return None
        if isinstance(module, fx.GraphModule):
            graph = module.mode_graph(False) if isinstance(module, TwoModeGraphModule) else module.graph
            return [str(node.target) for node in graph.nodes if node.op == "placeholder"]
        try:
            parameters = inspect.signature(module.forward).parameters.values()
        except ValueError:  # torch.jit compiled it
            return None
        stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        return [stars.get(parameter.kind, "") + parameter.name for parameter in parameters]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain tensor attributes, of any shape, under all their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield (f"{path}.{name}" if path else name), value


def _is_container(kind: type) -> bool:
    return issubclass(kind, dict) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _placeholder(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        return tensor
    if tensor.layout == torch.strided:
        empty = torch.empty_like(tensor, device="meta")
    else:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
