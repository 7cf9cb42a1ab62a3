"""Makes the modules that a plan lists, from the user's model and a table of torch's layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from sparsefx.archive.plan import CONTAINER, GRAPH_MODULE, NAMES_IN_FILES, ModulePlan, class_name, hook_counts
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.passes.graph.graph_module import CompiledGraphModule
from sparsefx.passes.graph.layer_sizes import SIZES
from sparsefx.passes.graph.partial_layer_norm import PartialLayerNorm
from sparsefx.passes.serialize.plain_values import DataError, decode_value, encode_value

_REMEDY = "pass the model that was exported, built with the same arguments"
_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


class Mismatch(DataError):
    """The file is about another model than the one given."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; {_REMEDY}")
        self.difference = message


class Maker:
    """Makes the modules of a plan out of a copy of the user's model."""

    def __init__(self, copied: nn.Module) -> None:
        self._own = dict(copied.named_modules(remove_duplicate=False))
        self._made: set[nn.Module] = set()

    def make(self, plan: ModulePlan, made: Mapping[str, nn.Module]) -> nn.Module:
        """One module, with its attributes and tensors, without its children.

        Raises:
            DataError: the plan contradicts itself.
            Mismatch: it does not fit the user's model.
        """
        if plan.same_as is not None:
            if plan.same_as not in made:
                raise DataError(
                    f"module {plan.path!r} is the same as {plan.same_as[:80]!r}, which is unknown"
                )
            return made[plan.same_as]
        is_holder = plan.kind in (GRAPH_MODULE, CONTAINER)
        module = self._holder(plan) if is_holder else self._layer(plan)
        if module in self._made and not _holds_nothing(module):
            raise Mismatch(f"module {plan.path!r} is another's too in the model given")
        module = copy.copy(module) if module in self._made else module
        self._made.add(module)
        if hook_counts(module) != plan.hooks:
            raise Mismatch(f"module {plan.path!r} had {sum(plan.hooks)} forward hooks when it was saved")
        return module

    def _holder(self, plan: ModulePlan) -> nn.Module:
        """A module that only holds others, with the user's forward hooks if it has a graph."""
        if plan.graph is None:
            return nn.Module()
        if plan.path not in self._own:
            raise Mismatch(f"module {plan.path!r} has a graph, but is not in the model given")
        module = CompiledGraphModule(nn.Module(), fx.Graph())
        own = self._own[plan.path]
        if plan.hooks[0]:
            module.__dict__.update({hooks: copy.copy(own.__dict__[hooks]) for hooks in _HOOKS})
        return module

    def _layer(self, plan: ModulePlan) -> nn.Module:
        module = self._own.get(plan.path)
        if module is None or plan.kind == _PARTIAL_NORM:
            if plan.kind not in CONSTRUCTIBLE:
                raise Mismatch(f"module {plan.path!r} ({plan.kind[:80]}) is not in the model given")
            module = _construct(plan)
        elif not _same_class(class_name(module), plan.kind):
            raise Mismatch(
                f"module {plan.path!r} is a {plan.kind[:80]}, in the model given a {class_name(module)}"
            )
        for name, data in plan.attributes.items():
            _set_attribute(module, name, data, plan.path)
        return module


def _holds_nothing(module: nn.Module) -> bool:
    """Whether a module is an activation or the like, of which each part of an export has its own."""
    held = (*module._parameters, *module._buffers, *module._modules)
    return not held and not any(isinstance(value, Tensor) for value in vars(module).values())


def _same_class(own: str, saved: str) -> bool:
    """Whether two names mean one class; a user's may be in ``__main__`` now and in a module later."""
    if own.startswith("torch.") or saved.startswith("torch."):
        return own == saved
    return own.rpartition(".")[2] == saved.rpartition(".")[2]


def _construct_convolution(kind: type[nn.Module]) -> Callable[[Mapping[str, Any]], nn.Module]:
    names = ["kernel_size", "stride", "padding", "dilation", "padding_mode"]
    names += ["output_padding"] if "Transpose" in kind.__name__ else []
    return lambda values: kind(1, 1, **{name: values[name] for name in names}, device="meta")


_PARTIAL_NORM = NAMES_IN_FILES[PartialLayerNorm]  # in the place of a LayerNorm

CONSTRUCTIBLE: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    _PARTIAL_NORM: lambda values: PartialLayerNorm.of_attributes(values),
    NAMES_IN_FILES[SparseRegion]: lambda values: SparseRegion.of_attributes(values),
    "torch.nn.modules.linear.Linear": lambda values: nn.Linear(1, 1, device="meta"),
    "torch.nn.modules.normalization.GroupNorm": lambda kept: nn.GroupNorm(1, 1, kept["eps"], device="meta"),
    "torch.nn.modules.normalization.LayerNorm": lambda values: nn.LayerNorm(1, values["eps"], device="meta"),
    **{
        f"torch.nn.modules.conv.{kind.__name__}": _construct_convolution(kind)
        for kind in (
            nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
        )
    },
}  # fmt: skip
"""Layers that passes make: class name to a function from the saved attributes to such a layer, of any
widths. A pass that makes layers of another class adds it here."""


def _construct(plan: ModulePlan) -> nn.Module:
    values = {name: decode_value(data) for name, data in plan.attributes.items()}
    try:
        return CONSTRUCTIBLE[plan.kind](values)
    except Exception as error:  # torch refuses arguments in many ways
        raise DataError(
            f"no {plan.kind} can be made with the attributes of {plan.path!r}: {error}"
        ) from error


def _set_attribute(module: nn.Module, name: str, data: Any, path: str) -> None:
    """Set a size; any other attribute that the module has must be what it was."""
    if name not in vars(module) or name == "training" or name.startswith("_"):
        return
    own, saved = vars(module)[name], decode_value(data)
    if name in SIZES and _are_sizes(own) and _are_sizes(saved):
        module.__dict__[name] = saved  # not by setattr, which a user's class may redefine
    elif encode_value(own) != data:
        raise Mismatch(
            f"attribute {name!r} of {path!r} was saved as {saved!r}, in the model given it is {own!r}"
        )


def _are_sizes(value: Any) -> bool:
    return all(type(size) is int and size >= 0 for size in (value if type(value) is tuple else (value,)))
