"""Copies in the modes of what they are copies of."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def in_modes_of(model: nn.Module, copied: _Module) -> _Module:
    """Put a deep copy into the modes that its model's modules are in, and return it.

    A class may forget them, as that of torchvision's feature extractors does, and run the other mode's graph.
    """
    modules = dict(copied.named_modules())
    for name, old in model.named_modules():
        new = modules.get(name)  # None where fx has left out what its graph does not call
        if new is not None and new.training is not old.training:
            new.train(old.training)
    return copied
