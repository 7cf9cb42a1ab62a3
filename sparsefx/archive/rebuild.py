"""From a plan, its tensors and the user's architecture to the model that was saved.

Code comes from the user's model and from a table of torch's layers alone. The plan says only which of these
are put where, with which sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from sparsefx.archive.architecture import Architecture
from sparsefx.archive.make import Maker, Mismatch
from sparsefx.archive.plan import TENSOR_KINDS, ModulePlan, TensorPlan, can_have, class_name, in_order
from sparsefx.kernels.ir.check import check
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.passes.graph.layer_sizes import promised_shapes
from sparsefx.passes.serialize.graph_data import decode_graph
from sparsefx.passes.serialize.plain_values import DataError
from sparsefx.passes.serialize.vocabulary import Names

_MANY = 10_000  # modules that passes may have made


def rebuild(
    plans: Sequence[ModulePlan], stored: Mapping[str, Tensor], architecture: Architecture
) -> nn.Module:
    """The saved model.

    Args:
        plans: what is known of each module, parents first.
        stored: the file's tensors, of any shape, which become the model's.
        architecture: the user's model.

    Raises:
        DataError: the plan contradicts itself or the tensors.
        Mismatch: it contradicts the architecture.
    """
    if len(plans) > _MANY + 2 * sum(1 for _ in architecture.model.modules()):
        raise Mismatch(f"the file has {len(plans)} modules, far more than the model given")
    tensors = _Tensors(stored)
    for plan in plans:
        _load_tensors(plan, tensors, architecture)
    if unused := stored.keys() - tensors.used:
        raise DataError(f"tensor {min(unused)[:80]!r} of the file belongs to no module")
    maker = Maker(architecture.copy_with(tensors.by_name))
    modules: dict[str, nn.Module] = {}
    for plan in plans:
        module = maker.make(plan, modules)
        _attach(plan, module, modules)
        if plan.same_as is None:
            _fill(plan, module, tensors.by_name)
    _check_tree(plans, modules)
    own = lambda: _own_graphs(plans, architecture)  # noqa: E731
    names = Names(own, architecture.containers, architecture.names_operator)
    for plan in plans:
        if plan.graph is not None:
            _set_graph(plan, cast(fx.GraphModule, modules[plan.path]), names, architecture)
    return modules[""].eval()


class _Tensors:
    """The parameters and buffers made of a file's tensors; tied names get one object."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self.stored, self.used = stored, set[str]()
        self.by_name: dict[str, Tensor] = {}
        self._made: dict[tuple[str, bool], Tensor] = {}

    def make(self, name: str, plan: TensorPlan, is_parameter: bool) -> None:
        """Make the tensor of a name."""
        key = (plan.stored, is_parameter)
        if plan.stored not in self.stored:
            raise DataError(f"tensor {plan.stored[:80]!r} is not in the file")
        if key not in self._made:
            values = self._values(plan, name)
            self._made[key] = nn.Parameter(values, plan.flag) if is_parameter else values
        self.used.add(plan.stored)
        self.by_name[name] = self._made[key]

    def _values(self, plan: TensorPlan, name: str) -> Tensor:
        values = self.stored[plan.stored]
        if plan.is_complex:
            values = torch.view_as_complex(values)
        if plan.order and len(plan.order) != values.dim():
            raise DataError(f"tensor {name[:80]!r} has {values.dim()} dimensions, not {len(plan.order)}")
        values = in_order(values, plan.order)
        if plan.strides and not can_have(values, plan.strides):
            raise DataError(f"tensor {name[:80]!r} cannot have the strides {plan.strides}")
        return values.as_strided(values.shape, plan.strides) if plan.strides else values


def _load_tensors(plan: ModulePlan, tensors: _Tensors, architecture: Architecture) -> None:
    for kind in TENSOR_KINDS:
        for name, tensor_plan in plan.tensors[kind].items():
            if tensor_plan is None:
                continue
            full = f"{plan.path}.{name}" if plan.path else name
            try:
                tensors.make(full, tensor_plan, kind == "parameters")
            except RuntimeError as error:  # a gradient for integers, pairs that are no complex numbers
                raise DataError(f"tensor {full[:80]!r} cannot be made: {error}") from error
            own, shape = architecture.shape_of(full), tensors.by_name[full].shape
            if own is not None and (len(own) != len(shape) or any(map(int.__gt__, shape, own))):
                raise Mismatch(f"tensor {full!r} is {tuple(shape)}, in the model given it is {tuple(own)}")


def _attach(plan: ModulePlan, module: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put a module into its parent."""
    parent, _, name = plan.path.rpartition(".")
    if plan.path in modules or (plan.path and parent not in modules):
        raise DataError(f"module {plan.path!r} comes twice, or before its parent")
    if plan.path:
        holder = modules[parent]
        if name not in holder._modules and (not _only_holds(holder) or hasattr(holder, name)):
            raise Mismatch(
                f"module {plan.path!r} is not in the model given, or has the name of something else"
            )
        holder._modules[name] = module
    modules[plan.path] = module


def _only_holds(module: nn.Module) -> bool:
    """Whether a module has no code of its own: what it contains is what the plan says."""
    return isinstance(module, fx.GraphModule) or type(module) is nn.Module


def _fill(plan: ModulePlan, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module its tensors."""
    prefix = f"{plan.path}." if plan.path else ""
    own: dict[str, dict[str, Any]] = {
        "parameters": module._parameters,
        "buffers": module._buffers,
        "constants": _constants(module),
    }
    for kind in TENSOR_KINDS:
        names = plan.tensors[kind].keys()
        if not _only_holds(module) and names != own[kind].keys():
            name = min(names ^ own[kind].keys())
            raise Mismatch(f"{name[:80]!r} is not among the {kind} of module {plan.path!r} in both models")
    for kind in TENSOR_KINDS:
        for name, tensor_plan in plan.tensors[kind].items():
            if name not in own[kind] and hasattr(module, name):
                raise DataError(f"tensor {prefix + name!r} has the name of something else")
            tensor = None if tensor_plan is None else tensors[prefix + name]
            target: dict[str, Any] = module.__dict__ if kind == "constants" else own[kind]
            target[name] = tensor
            if kind == "buffers" and tensor_plan is not None:
                transient = module._non_persistent_buffers_set
                transient.discard(name) if tensor_plan.flag else transient.add(name)
    if class_name(module).startswith("torch.nn.modules."):
        _check_sizes(plan, module)
    if isinstance(module, SparseRegion):
        _check_region(plan, module)


def _constants(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}


def _check_sizes(plan: ModulePlan, layer: nn.Module) -> None:
    held = {**layer._parameters, **layer._buffers}
    for name, shape in promised_shapes(layer).items():
        tensor = held.get(name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise DataError(
                f"{name!r} of {plan.path!r} is {tuple(tensor.shape)}, its layer's attributes say {shape}"
            )


def _check_region(plan: ModulePlan, region: SparseRegion) -> None:
    """Kernels go where the weights say without looking."""
    try:
        check(region.program, region.tensors(), region.layers)
    except ValueError as error:
        raise DataError(f"region {plan.path[:80]!r} is not valid: {error}") from error


def _check_tree(plans: Sequence[ModulePlan], modules: Mapping[str, nn.Module]) -> None:
    """The tree has exactly the modules of the plan, in its order; a cycle would have more."""
    if "" not in modules:
        raise DataError("no module is the model itself")
    for plan, (path, module) in zip_longest(
        plans, modules[""].named_modules(remove_duplicate=False), fillvalue=(None, None)
    ):
        if not isinstance(plan, ModulePlan):
            raise Mismatch(f"module {path!r} of the model given is not in the file")
        if plan.path != path or modules[plan.path] is not module:
            raise DataError(f"module {plan.path!r} is not where the file says")


def _own_graphs(plans: Iterable[ModulePlan], architecture: Architecture) -> list[fx.Graph]:
    graphs = (architecture.graph_of(plan.path) for plan in plans if plan.graph is not None)
    return [graph for graph in graphs if graph is not None]


def _takes(own: Sequence[str], arguments: Sequence[str]) -> bool:
    """Whether a graph has the arguments of a forward: starred ones it may lack, or have by their names."""
    plain = [name for name in own if not name.startswith("*") or name in arguments]
    some = any(name.startswith("**") for name in own)
    return list(arguments[: len(plain)]) == plain and (some or len(arguments) == len(plain))


def _set_graph(plan: ModulePlan, module: fx.GraphModule, names: Names, architecture: Architecture) -> None:
    """Decode a module's graph and compile it."""
    assert plan.graph is not None
    which = plan.path or "the model"
    own = architecture.arguments_of(plan.path)
    try:
        graph = decode_graph(plan.graph, names, module)
        arguments = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
        if own is not None and not _takes(own, arguments):
            raise Mismatch(f"forward of {which!r} takes {arguments}, in the model given {own}")
        module.graph = graph
        graph.lint()
    except DataError:
        raise
    except Exception as error:  # the checked parts do not fit together, which fx says in many ways
        raise DataError(f"graph of {which!r} is not valid: {error}") from error
