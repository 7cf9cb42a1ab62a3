"""Optimal Brain Damage: how much the loss grows, to second order, when a weight is removed."""

from __future__ import annotations

from torch import Tensor

from sparsefx._common.registry import resolve
from sparsefx.masking.masks import masked_weights
from sparsefx.scores.curvature import CURVATURES, Curvature
from sparsefx.scores.scoring_context import ScoringContext


def optimal_brain_damage(
    context: ScoringContext, *, curvature: str | Curvature = "gauss-newton"
) -> dict[str, Tensor]:
    """``h * w^2 / 2``, h the Hessian's diagonal at a trained network (LeCun, Denker & Solla 1990).

    Mixed derivatives are neglected, and the gradient, which is 0 where training has converged.

    Args:
        context: the training data or enough of it, and the training loss. The model is run in
            evaluation mode.
        curvature: ``"gauss-newton"`` (exact but for the layers' own curvature; a backward pass for each
            output), ``"fisher"`` (one pass) or ``"hutchinson"`` (an estimate, for any loss and layer), or
            a callable ``(context, model)`` such as :func:`functools.partial` of one of these. Negative
            curvature counts as 0.

    Returns:
        For each masked weight's name a nonnegative tensor of its shape; higher is more worth keeping.

    Raises:
        ArgumentError: there are no batches, nobody registered that curvature, or it cannot read a layer.
    """
    diagonal_of = resolve("curvature", curvature, CURVATURES)
    with context.scratch(training=False) as model:
        diagonal = diagonal_of(context, model)
        return {
            layer.name: 0.5 * diagonal[layer.name].clamp(min=0) * layer.weight.detach().square()
            for layer in masked_weights(model)
        }
