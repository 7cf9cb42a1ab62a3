"""Exact, deterministic choice of the largest scores among candidates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsefx.errors import CycleError


def magnitudes(values: Tensor) -> Tensor:
    """Absolute values of a tensor of any shape to rank by, in float32 at least; NaN is infinitely large."""
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

    Raises:
        CycleError: there are fewer candidates than ``count``.
    """
    if count == 0:
        return torch.zeros_like(candidates)
    among = scores.masked_select(candidates)  # a fourth to a fourteenth of the time of indexing
    if len(among) < count:
        raise CycleError(
            f"select_largest has {len(among)} candidates for {count} positions; what prunes chooses among "
            "layer.mask, what grows among ~layer.mask"
        )
    # What selects leaves the order of equal scores open, so it only supplies the threshold.
    threshold = _of_rank(among, count)
    chosen = (candidates & (scores > threshold)).flatten()
    ties = (candidates & (scores == threshold)).flatten().nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.count_nonzero())]] = True
    return chosen.view(candidates.shape)


def _of_rank(values: Tensor, rank: int) -> Tensor:
    """The ``rank``-th largest of a vector, from 1."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # NumPy's selection takes a fourth of topk's time.
        at = len(values) - rank
        return torch.from_numpy(np.partition(values.detach().numpy(), at)[at : at + 1])
    return values.topk(rank, sorted=False).values.min()
