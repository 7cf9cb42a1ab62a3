"""Deep copies of models, in the modes of what they are copies of."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def deep_copy(model: _Module, memo: dict[int, Any] | None = None) -> _Module:
    """A deep copy in the model's modes. It shares functions of ``torch.jit.script``, which hold no state.

    Args:
        model: the model.
        memo: what stands for objects of the model, by identity, instead of copies.

    Raises:
        Exception: whatever an attribute raises that cannot be copied.
    """
    return _in_modes_of(model, copy.deepcopy(model, _compiled(model) | (memo or {})))


def _compiled(model: nn.Module) -> dict[int, Any]:
    """Compiled functions that modules hold, by identity."""
    held = (leaf for module in model.modules() for value in vars(module).values() for leaf in _leaves(value))
    return {id(leaf): leaf for leaf in held if isinstance(leaf, torch.jit.ScriptFunction)}


def _leaves(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [value, *items]


def _in_modes_of(model: nn.Module, copied: _Module) -> _Module:
    """Put a deep copy into the modes that its model's modules are in, and return it.

    A class may forget them, as that of torchvision's feature extractors does, and run the other mode's graph.
    """
    modules = dict(copied.named_modules())
    for name, old in model.named_modules():
        new = modules.get(name)  # None where fx has left out what its graph does not call
        if new is not None and new.training is not old.training:
            new.train(old.training)
    return copied
