"""Choices that look at all layers at once, where others look at one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx.cycle.layer_state import LayerState
from sparsefx.cycle.moment import Moment
from sparsefx.cycle.select import select_largest


@dataclass(frozen=True)
class ForAllLayers:
    """A prune or grow function of all layers together.

    Attributes:
        choose: ``(layers, counts, moment)`` returns for each layer a bool tensor of the weight's shape.
            ``counts`` says how many each would lose or gain at the rate, layer by layer: one that prunes may
            choose any number instead, one that grows must choose as many in all.
    """

    choose: Callable[[Sequence[LayerState], Sequence[int], Moment], list[Tensor]]

    @property
    def __name__(self) -> str:
        return getattr(self.choose, "__name__", repr(self.choose))

    def __call__(self, layers: Sequence[LayerState], counts: Sequence[int], moment: Moment) -> list[Tensor]:
        """Ask for all layers' positions."""
        return self.choose(layers, counts, moment)


def largest_of_all(scores: Sequence[Tensor], candidates: Sequence[Tensor], count: int) -> list[Tensor]:
    """Choose exactly ``count`` candidates of all tensors with the largest scores.

    Args:
        scores: real, no NaN, of any shapes.
        candidates: bool, of the scores' shapes, with at least ``count`` True positions in all.
        count: how many positions to choose.

    Returns:
        Bool tensors of the scores' shapes; of equal scores the first tensor's lowest flat index is chosen.
    """
    if not scores:
        return []
    device = scores[0].device
    flat = torch.cat([score.flatten().to(device, torch.float64) for score in scores])
    allowed = torch.cat([candidate.flatten().to(device) for candidate in candidates])
    parts = select_largest(flat, allowed, count).split([score.numel() for score in scores])
    return [part.view(score.shape).to(score.device) for part, score in zip(parts, scores, strict=True)]
