"""Copies of models."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.passes.running.copied_modes import in_modes_of


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy. Computed tensors that modules hold are detached in it: ``copy.deepcopy`` refuses them.

    The older ``torch.nn.utils.weight_norm`` leaves one in its layer, and computes it anew at each call.

    Raises:
        ArgumentError: an attribute, such as a lock or an open file, cannot be copied.
    """
    try:
        copied = copy.deepcopy(model, _detached(model))
    except Exception as error:  # a model may hold anything
        raise ArgumentError(f"model cannot be copied by copy.deepcopy: {error}") from error
    return in_modes_of(model, copied)


def _detached(model: nn.Module) -> dict[int, Tensor]:
    """Copies of computed tensors, by identity."""
    held = (value for module in model.modules() for value in vars(module).values())
    results = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return {id(tensor): tensor.detach().clone() for tensor in results}
