"""Derivatives of the mean loss by its masked weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsefx.scores.scoring_context import ScoringContext


def gradient(context: ScoringContext, model: nn.Module, weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the loss, averaged over all examples of all batches.

    Args:
        context: the batches and the loss.
        model: holds ``weights``.
        weights: by which to derive; one that the loss does not depend on has gradient 0.

    Returns:
        One tensor a weight, of its shape.
    """
    total = [torch.zeros_like(weight) for weight in weights]
    for loss in _weighted_losses(context, model):
        parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(total, list(parts))
    return total


def hessian_vector_product(
    context: ScoringContext, model: nn.Module, weights: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """The Hessian of the mean loss times a vector, by differentiating (gradient . vector) (Pearlmutter 1994).

    Args:
        context: the batches and the loss.
        model: holds ``weights``; what it computes must have second derivatives.
        weights: the Hessian's coordinates, all together.
        vectors: one tensor a weight, of its shape.

    Returns:
        One tensor a weight, of its shape.
    """
    total = [torch.zeros_like(weight) for weight in weights]
    for loss in _weighted_losses(context, model):
        slopes = torch.autograd.grad(
            loss, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        along = torch.stack(
            [(slope * vector).sum() for slope, vector in zip(slopes, vectors, strict=True)]
        ).sum()
        parts = torch.autograd.grad(along, weights, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(total, list(parts))
    return total


def _weighted_losses(context: ScoringContext, model: nn.Module) -> Iterator[Tensor]:
    """Each batch's share of the mean loss: they sum to it, whatever the batches' sizes."""
    examples = sum(len(inputs) for inputs, _ in context.data())
    for inputs, targets in context.data():
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            loss = context.loss(model(inputs), targets)
        yield loss * (len(inputs) / examples)
