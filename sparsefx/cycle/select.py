"""Exact, deterministic choice of the largest scores among candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.errors import CycleError


def magnitudes(values: Tensor) -> Tensor:
    """Absolute values to rank by, in float32 at least; NaN counts as infinitely large."""
    wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    return wide.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)


def select_largest(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Choose exactly ``count`` candidates with the largest scores; of equals, the lowest flat index.

    Args:
        scores: real, no NaN, shape ``S``.
        candidates: bool, shape ``S``, with at least ``count`` True positions.
        count: how many positions to choose.

    Returns:
        Bool tensor of shape ``S``, True at the chosen positions.
    """
    if count == 0:
        return torch.zeros_like(candidates)
    # topk leaves the order of equal scores open, so it only supplies the threshold.
    among = scores[candidates]
    if len(among) < count:
        raise CycleError(
            f"select_largest has {len(among)} candidates for {count} positions; what prunes chooses among "
            "layer.mask, what grows among ~layer.mask"
        )
    threshold = among.topk(count, sorted=False).values.min()
    chosen = (candidates & (scores > threshold)).flatten()
    ties = (candidates & (scores == threshold)).flatten().nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.view(candidates.shape)
