"""SynFlow: how much of a network's flow passes through a weight, whatever the data."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.scores.scoring_context import ScoringContext


def synflow(context: ScoringContext) -> dict[str, Tensor]:
    """``|dR/dw * w|`` with R the summed output for an input of ones (Tanaka et al. 2020).

    All parameters are taken by their absolute value, in float64 (a deep network's flow overflows
    float32) and evaluation mode. It is meant for many rounds: ``prune(..., rounds=100)``. The
    scores into a hidden unit without bias sum to those out of it, which is why no layer is emptied
    before the others.

    Args:
        context: of the batches only the shape of the first one's inputs counts.

    Returns:
        For each masked weight's name a float64 tensor of its shape, nonnegative.

    Raises:
        ArgumentError: there are no batches.
    """
    first = next(iter(context.batches), None)
    if first is None:
        raise ArgumentError("batches is empty; synflow needs an input's shape: batches=[(inputs, None)]")
    with context.scratch(training=False) as model:
        model.double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_()
        layers = masked_weights(model)
        weights = [layer.weight for layer in layers]
        flow = model(torch.ones_like(first[0][:1], dtype=torch.float64)).sum()
        slopes = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
        return {
            layer.name: (layer.weight.detach() * slope).abs()
            for layer, slope in zip(layers, slopes, strict=True)
        }
