"""SNIP: how much the loss changes, to first order, when a connection is cut."""

from __future__ import annotations

from torch import Tensor

from sparsefx.masking.masks import masked_weights
from sparsefx.scores.derivatives import gradient
from sparsefx.scores.scoring_context import ScoringContext


def snip(context: ScoringContext, *, training: bool = False) -> dict[str, Tensor]:
    """``|gradient * w|``: the loss' derivative by a gate that multiplies the weight (Lee et al. 2019).

    The paper divides by the sum of all scores, which changes no ranking and is left out.

    Args:
        context: one batch of the training size is what the paper uses; several are averaged over.
        training: run the model in training mode, so that BatchNorm uses the batch's statistics. The
            authors' code scores with the running statistics, that is in evaluation mode.

    Returns:
        For each masked weight's name a tensor of its shape; higher is more worth keeping.

    Raises:
        ArgumentError: there are no batches.
    """
    with context.scratch(training=training) as model:
        layers = masked_weights(model)
        gradients = gradient(context, model, [layer.weight for layer in layers])
        return {
            layer.name: (layer.weight.detach() * slope).abs()
            for layer, slope in zip(layers, gradients, strict=True)
        }
