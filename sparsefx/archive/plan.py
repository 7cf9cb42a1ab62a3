"""What a file says of each module: its class, its simple attributes, its tensors, perhaps its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.passes.graph.partial_layer_norm import PartialLayerNorm
from sparsefx.passes.serialize.graph_data import check_path
from sparsefx.passes.serialize.plain_values import DataError, encode_value, expect, fields

TENSOR_KINDS = ("parameters", "buffers", "constants")
GRAPH_MODULE = "torch.fx.graph_module.GraphModule"
CONTAINER = "torch.nn.modules.module.Module"
_SIMPLE = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class TensorPlan:
    """A parameter, buffer or other tensor of a module.

    Attributes:
        stored: the name that the file has it under; tied tensors have the same.
        flag: of a parameter: ``requires_grad``; of a buffer: whether it is in the state dict.
        order: its dimensions in the order of memory, where that is not their own order.
        strides: its strides, where those along a single index are not what they would be by default; torch
            chooses kernels by them.
        is_complex: whether the file has it as pairs of real numbers.
    """

    stored: str
    flag: bool
    order: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    is_complex: bool = False

    def as_data(self) -> dict[str, Any]:
        """The tensor as plain data."""
        data: dict[str, Any] = {"stored": self.stored, "flag": self.flag}
        if self.order:
            data["order"] = list(self.order)
        if self.strides:
            data["strides"] = list(self.strides)
        return {**data, "complex": True} if self.is_complex else data

    @classmethod
    def from_data(cls, data: Any, what: str) -> TensorPlan:
        """The tensor that plain data describes.

        Raises:
            DataError: it describes none.
        """
        optional = {"order": list, "strides": list, "complex": bool}
        found = fields(data, what, {"stored": str, "flag": bool}, optional)
        order = tuple(expect(dim, int, f"a dimension of {what}") for dim in found.get("order", ()))
        if sorted(order) != list(range(len(order))):
            raise DataError(f"the dimensions of {what} are not in an order")
        strides = tuple(expect(stride, int, f"a stride of {what}") for stride in found.get("strides", ()))
        return cls(found["stored"], found["flag"], order, strides, found.get("complex", False))


def in_order(values: Tensor, order: Sequence[int]) -> Tensor:
    """A tensor whose dimensions lie in memory in an order, in their own order."""
    return values.permute([order.index(dim) for dim in range(values.dim())]) if order else values


def can_have(values: Tensor, strides: Sequence[int]) -> bool:
    """Whether strides mean the same elements: they differ along dimensions of size 1 alone."""
    if len(strides) != values.dim() or not all(0 <= stride <= values.numel() for stride in strides):
        return False
    pairs = zip(values.shape, values.stride(), strict=True)
    return all(size == 1 or own == stride for (size, own), stride in zip(pairs, strides, strict=True))


Tensors = dict[str, TensorPlan | None]


@dataclass(frozen=True)
class ModulePlan:
    """A module.

    Attributes:
        path: its path in the model.
        kind: its class's qualified name.
        same_as: the path under which this very object came before; the rest is empty then.
        attributes: its simple attributes, as plain data.
        hooks: how many forward hooks and forward pre-hooks it has.
        tensors: for each of :data:`TENSOR_KINDS`, its tensors by name, None for an absent one.
        graph: the rows of its graph, if it is a ``GraphModule``.
    """

    path: str
    kind: str
    same_as: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    hooks: tuple[int, int] = (0, 0)
    tensors: Mapping[str, Tensors] = field(default_factory=lambda: {kind: {} for kind in TENSOR_KINDS})
    graph: list[Any] | None = None

    def as_data(self) -> dict[str, Any]:
        """The module as plain data."""
        data: dict[str, Any] = {"path": self.path, "class": self.kind}
        if self.same_as is not None:
            return {**data, "same_as": self.same_as}
        if self.attributes:
            data["attributes"] = dict(self.attributes)
        if any(self.hooks):
            data["hooks"] = list(self.hooks)
        for kind, tensors in self.tensors.items():
            if tensors:
                data[kind] = {name: plan and plan.as_data() for name, plan in tensors.items()}
        return data if self.graph is None else {**data, "graph": self.graph}

    @classmethod
    def from_data(cls, data: Any) -> ModulePlan:
        """The module that plain data describes.

        Raises:
            DataError: it describes none.
        """
        required = {"path": str, "class": str}
        optional = {"same_as": str, "attributes": dict, "hooks": list, "graph": list}
        found = fields(data, "a module", required, {**optional, **dict.fromkeys(TENSOR_KINDS, dict)})
        path = found["path"]
        what = f"module {path[:80]!r}"
        if path:
            check_path(path)
        hooks = tuple(expect(count, int, f"the hooks of {what}") for count in found.get("hooks", (0, 0)))
        if len(hooks) != 2:
            raise DataError(f"the hooks of {what} are not two numbers")
        if (found["class"] == GRAPH_MODULE) != ("graph" in found) and "same_as" not in found:
            raise DataError(f"{what} has no graph, or should have none")
        return cls(
            path,
            found["class"],
            found.get("same_as"),
            found.get("attributes", {}),
            hooks,
            {kind: _tensors(found.get(kind, {}), what) for kind in TENSOR_KINDS},
            found.get("graph"),
        )


def _tensors(data: dict[str, Any], what: str) -> Tensors:
    found: Tensors = {}
    for name, plan in data.items():
        check_path(name)
        if "." in name:
            raise DataError(f"tensor {name[:80]!r} of {what} has a dot in its name")
        found[name] = None if plan is None else TensorPlan.from_data(plan, f"tensor {name!r} of {what}")
    return found


NAMES_IN_FILES: dict[type[nn.Module], str] = {
    PartialLayerNorm: "sparsefx.passes.open_norms.PartialLayerNorm",
    SparseRegion: "sparsefx.kernels.region.SparseRegion",
}
"""Layers of sparsefx that passes make. The names belong to the file format: they stay what they are wherever
the classes move."""


def class_name(module: nn.Module) -> str:
    """A module's class, by its qualified name, or by the name that files have for it."""
    kind = type(module)
    return NAMES_IN_FILES.get(kind, f"{kind.__module__}.{kind.__qualname__}")


def simple_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's public attributes that are numbers, strings, None or tuples of these, as plain data."""
    return {
        name: encode_value(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_simple(value)
    }


def _is_simple(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_simple, value))
    return type(value) in _SIMPLE and not (type(value) is int and value.bit_length() > 63)


def hook_counts(module: nn.Module) -> tuple[int, int]:
    """How many forward hooks and forward pre-hooks a module has."""
    return len(module._forward_hooks), len(module._forward_pre_hooks)
