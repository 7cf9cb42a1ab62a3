"""Choices that look at all layers at once, where others look at one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx.cycle.positions.block import Block
from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.select import select_largest
from sparsefx.cycle.positions.select_across import select_largest_across
from sparsefx.cycle.positions.update_context import UpdateContext


@dataclass(frozen=True)
class ForAllLayers:
    """A prune or grow function of all layers together.

    Attributes:
        choose: ``(layers, counts, context)`` returns for each layer a bool tensor of the weight's shape.
            ``counts`` says how many each would lose or gain at the rate, layer by layer: one that prunes may
            choose any number instead, one that grows must choose as many in all.
    """

    choose: Callable[[Sequence[LayerState], Sequence[int], UpdateContext], list[Tensor]]

    @property
    def __name__(self) -> str:
        return getattr(self.choose, "__name__", repr(self.choose))

    def __call__(
        self, layers: Sequence[LayerState], counts: Sequence[int], context: UpdateContext
    ) -> list[Tensor]:
        """Ask for all layers' positions."""
        return self.choose(layers, counts, context)


def largest_of_all(
    layers: Sequence[LayerState], scores: Sequence[Tensor], candidates: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Choose exactly ``count`` candidates of all layers with the largest scores.

    Args:
        layers: whose positions they are.
        scores: real, no NaN, of the masks' shapes.
        candidates: bool, of the same shapes, with at least ``count`` True positions in all.
        count: how many positions to choose.

    Returns:
        Bool tensors of the masks' shapes; of equal scores the first layer's lowest flat index is chosen.
    """
    if not layers:
        return []
    if any(layer.block is not None for layer in layers):
        blocks = [layer.block or Block.full(layer.mask) for layer in layers]
        return select_largest_across(scores, candidates, count, blocks)
    device = scores[0].device
    flat = torch.cat([score.flatten().to(device, torch.float64) for score in scores])
    allowed = torch.cat([candidate.flatten().to(device) for candidate in candidates])
    parts = select_largest(flat, allowed, count).split([score.numel() for score in scores])
    return [part.view(score.shape).to(score.device) for part, score in zip(parts, scores, strict=True)]


def best_of_each(
    layers: Sequence[LayerState], scores: Sequence[Tensor], candidates: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Choose of each layer the ``count`` candidates with the largest scores, or all where there are fewer.

    Arguments and result, with their shapes, are those of :func:`largest_of_all`; ``count`` is of each layer.
    """
    return [
        layer.select_largest(score, some, min(count, layer.count(some)))
        for layer, score, some in zip(layers, scores, candidates, strict=True)
    ]
