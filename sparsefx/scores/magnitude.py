"""Keep what is large."""

from __future__ import annotations

from torch import Tensor

from sparsefx.masking.masks import masked_weights
from sparsefx.scores.scoring_context import ScoringContext


def magnitude(context: ScoringContext) -> dict[str, Tensor]:
    """``|w|``, without data (Han et al. 2015; Frankle & Carbin 2019).

    Args:
        context: only its model is looked at.

    Returns:
        For each masked weight's name a tensor of its shape; higher is more worth keeping.
    """
    return {masked.name: masked.weight.detach().abs() for masked in masked_weights(context.model)}
