"""Keep anything: the control that every other score is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.masking.masks import MaskedWeight, masked_weights
from sparsefx.scores.scoring_context import ScoringContext


def random(context: ScoringContext) -> dict[str, Tensor]:
    """Uniform random numbers, without data, from ``context.generator``.

    They are drawn on the generator's device (the CPU without one), so a seed gives the same
    scores wherever the model lives.

    Args:
        context: its model's shapes and its generator are used.

    Returns:
        For each masked weight's name a float64 tensor of its shape, in [0, 1).
    """
    return {masked.name: _draw(masked, context.generator) for masked in masked_weights(context.model)}


def _draw(masked: MaskedWeight, generator: torch.Generator | None) -> Tensor:
    # In float32 a million draws have ties, which would be broken by index.
    device = generator.device if generator is not None else None
    drawn = torch.rand(masked.mask.shape, generator=generator, device=device, dtype=torch.float64)
    return drawn.to(masked.mask.device)
