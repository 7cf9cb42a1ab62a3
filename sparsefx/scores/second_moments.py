"""The second moments of what the masked layers read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import MaskedWeight, masked_weights
from sparsefx.scores.layer_calls import watched
from sparsefx.scores.scoring_context import ScoringContext


def second_moments(context: ScoringContext, model: nn.Module, damping: float) -> dict[str, Tensor]:
    """The mean of ``x x^T`` over each masked layer's inputs x: the Hessian of its output's squared error.

    Args:
        context: the batches; not the loss.
        model: the model to run.
        damping: this fraction of the mean diagonal is added to the diagonal.

    Returns:
        For each masked weight's name, float64, shape (groups, fan in, fan in). Convolutions average
        over positions too, tied weights over all their uses.

    Raises:
        ArgumentError: there are no batches, a masked weight is of another kind of layer than Linear and
            Conv, or a layer is not called.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(layer: MaskedWeight, rows: Tensor, output: Tensor) -> None:
        rows = rows.double()
        sums[layer.name] = sums.get(layer.name, 0) + rows.transpose(1, 2) @ rows
        counts[layer.name] = counts.get(layer.name, 0) + rows.shape[1]

    with watched(model, add), torch.no_grad():
        for inputs, _ in context.data():
            model(inputs)
    for layer in masked_weights(model):
        if layer.name not in sums:
            raise ArgumentError(f"layer {layer.name!r} is not called by the model; keep it dense")
    return {name: _damped(total / counts[name], damping) for name, total in sums.items()}


def _damped(moment: Tensor, damping: float) -> Tensor:
    diagonal = moment.diagonal(dim1=1, dim2=2)
    # A layer that only ever reads zeros has no scale; any positive one will do.
    diagonal += damping * (float(diagonal.mean()) or 1.0)
    return moment
