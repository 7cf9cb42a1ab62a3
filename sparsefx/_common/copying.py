"""Copies of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn, strided
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from sparsefx._common.plain_tensors import dense
from sparsefx.errors import ArgumentError
from sparsefx.passes.running.deep_copy import deep_copy


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy. Computed tensors that modules hold are detached in it: ``copy.deepcopy`` refuses them.

    The older ``torch.nn.utils.weight_norm`` and ``torch.nn.utils.prune`` leave one in their layer, and
    compute it anew at each call. Tensors in CSR and other sparse layouts, which cannot be copied either,
    become dense.

    Raises:
        ArgumentError: an attribute, such as a lock or an open file, cannot be copied.
    """
    try:
        return deep_copy(model, _detached(model) | _dense(model))
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


def without_weight_hooks(model: nn.Module, *, norms: bool = True) -> nn.Module:
    """A model whose hooks compute no parameters: the model, or a copy in which they are computed for good.

    Args:
        model: a model; it is not changed.
        norms: remove the hooks of the older ``weight_norm`` and ``spectral_norm``, beside those of
            ``torch.nn.utils.prune``.
    """
    if not any(_weight_hooks(module, norms) for module in model.modules()):
        return model
    permanent = copy_model(model)
    for module in permanent.modules():
        for remove, name in _weight_hooks(module, norms):
            remove(module, name)
    return permanent


def _weight_hooks(module: nn.Module, norms: bool) -> list[tuple[Callable[[nn.Module, str], Any], str]]:
    """What removes each hook that computes a parameter, and the parameter's name."""
    hooks: list[Any] = list(module._forward_pre_hooks.values())
    return [
        (remove, getattr(hook, attribute))
        for hook in hooks
        for kind, (remove, attribute) in _REMOVE.items()
        if isinstance(hook, kind) and (norms or kind is prune.BasePruningMethod)
    ]


_REMOVE: dict[type, tuple[Callable[..., Any], str]] = {
    prune.BasePruningMethod: (prune.remove, "_tensor_name"),
    WeightNorm: (remove_weight_norm, "name"),
    SpectralNorm: (remove_spectral_norm, "name"),
}
