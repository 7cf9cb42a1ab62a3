"""Copies of models."""

from __future__ import annotations

import copy

from torch import Tensor, nn, strided
from torch.nn.utils import prune

from sparsefx._common.plain_tensors import dense
from sparsefx.errors import ArgumentError


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy. Computed tensors that modules hold are detached in it: ``copy.deepcopy`` refuses them.

    The older ``torch.nn.utils.weight_norm`` and ``torch.nn.utils.prune`` leave one in their layer, and
    compute it anew at each call. Tensors in CSR and other sparse layouts, which cannot be copied either,
    become dense.

    Raises:
        ArgumentError: an attribute, such as a lock or an open file, cannot be copied.
    """
    try:
        return copy.deepcopy(model, _detached(model) | _dense(model))
    except Exception as error:  # a model may hold anything
        raise ArgumentError(f"model cannot be copied by copy.deepcopy: {error}") from error


def _detached(model: nn.Module) -> dict[int, Tensor]:
    """Copies of computed tensors, by identity."""
    held = (value for module in model.modules() for value in vars(module).values())
    results = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return {id(tensor): tensor.detach().clone() for tensor in results}


def _dense(model: nn.Module) -> dict[int, Tensor]:
    """Dense copies of what has a sparse layout, by identity."""
    held = (*model.parameters(), *model.buffers())
    return {id(tensor): dense(tensor) for tensor in held if tensor.layout != strided}


def without_pruning(model: nn.Module) -> nn.Module:
    """The model or, where ``torch.nn.utils.prune`` masks parameters at each call, a copy with masked ones."""
    if not any(_prunings(module) for module in model.modules()):
        return model
    permanent = copy_model(model)
    for module in permanent.modules():
        for hook in _prunings(module):
            prune.remove(module, hook._tensor_name)
    return permanent


def _prunings(module: nn.Module) -> list[prune.BasePruningMethod]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, prune.BasePruningMethod)]
