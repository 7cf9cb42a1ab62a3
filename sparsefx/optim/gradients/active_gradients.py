"""Gradients of the active weights alone, for optimizers whose steps mix the positions of a weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from sparsefx.masking.mask_values import zero_outside
from sparsefx.masking.sharding import local
from sparsefx.optim.weights.weight_handles import WeightHandle


def mixes_positions(optimizer: Optimizer) -> bool:
    """Whether a step at active positions depends on the gradient at inactive ones.

    A curvature estimate, a line search or the norm of a perturbation takes all positions together. Such
    optimizers evaluate the model at points of their own: they cannot step without a closure, as LBFGS, or
    they step twice, as SAM (Foret et al. 2021).
    """
    if isinstance(optimizer, LBFGS) or hasattr(optimizer, "first_step"):
        return True
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def forget_curvature(optimizer: Optimizer) -> None:
    """After masks have changed: LBFGS begins anew, as what it knows is of other weights than now train."""
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()


class ActiveGradients:
    """Hides the gradient of inactive weights from an optimizer, and gives it back for growth."""

    def __init__(self, handles: Sequence[WeightHandle]) -> None:
        self._handles = handles
        self._full: dict[str, Tensor] = {}

    @torch.no_grad()
    def hide(self) -> None:
        """Zero the gradients outside the masks."""
        for handle in self._handles:
            gradient = handle.weight.grad
            if gradient is not None:
                self._full[handle.masked.name] = local(gradient).detach().clone()
                zero_outside(gradient.detach(), handle.mask)

    @torch.no_grad()
    def show(self) -> None:
        """Put back what the last :meth:`hide` has hidden."""
        for handle in self._handles:
            gradient, full = handle.weight.grad, self._full.get(handle.masked.name)
            if gradient is not None and full is not None:
                local(gradient).detach().copy_(full)

    def after(self, closure: Callable[[], float]) -> Callable[[], float]:
        """A closure that hides them after each evaluation."""

        def evaluate() -> float:
            loss = closure()
            self.hide()
            return loss

        return evaluate
