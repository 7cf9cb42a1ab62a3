"""The same choice as :mod:`sparsefx.cycle.positions.select` where each process holds a block of the layers.

No process ever sees more than its own blocks. The score of the last one chosen is found digit by digit:
the processes add up how many scores there are with each value of a digit, choose the digit, and go on
with the scores that share it. So it costs a few sums of 2,048 integers, however large the layers are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsefx.cycle.positions.block import Block

_DIGIT = 11  # bits: three digits of a float32, sums of 16 KiB


def select_largest_across(
    scores: Sequence[Tensor], candidates: Sequence[Tensor], count: int, blocks: Sequence[Block]
) -> list[Tensor]:
    """Choose exactly ``count`` candidates of all layers with the largest scores.

    Every process that holds a block of a layer must call it, with the same ``count`` and layers.

    Args:
        scores: this process's blocks of the scores, real, no NaN.
        candidates: bool, of the scores' shapes.
        count: how many positions to choose in all; no more than there are candidates.
        blocks: where they are in their layers.

    Returns:
        This process's blocks of the choice, bool. Of equal scores the first layer's lowest flat index is
        chosen, as if one process held all.
    """
    if count == 0:
        return [torch.zeros_like(some) for some in candidates]
    dtype = torch.float32 if all(score.dtype == torch.float32 for score in scores) else torch.float64
    keys = [_ordered(score.to(dtype)) for score in scores]
    bits = torch.finfo(dtype).bits
    threshold = _key_of_rank([k[c] for k, c in zip(keys, candidates, strict=True)], count, bits, blocks)
    chosen = [some & (key > threshold) for key, some in zip(keys, candidates, strict=True)]
    ties = [some & (key == threshold) for key, some in zip(keys, candidates, strict=True)]
    numbers = [torch.stack([above.sum(), equal.sum()]) for above, equal in zip(chosen, ties, strict=True)]
    totals = [block.sum(number).tolist() for block, number in zip(blocks, numbers, strict=True)]
    missing = count - sum(above for above, _ in totals)
    for index, (block, (_, equal)) in enumerate(zip(blocks, totals, strict=True)):
        taken = min(missing, equal)
        chosen[index] = chosen[index] | _first(ties[index], taken, equal, block)
        missing -= taken
    return chosen


def _ordered(scores: Tensor) -> Tensor:
    """Integers in the order of the scores, int64."""
    integer, largest = (
        (torch.int32, 0x7FFFFFFF) if scores.dtype == torch.float32 else (torch.int64, 0x7FFFFFFFFFFFFFFF)
    )
    bits = (scores + 0.0).view(integer).long()  # -0.0 + 0.0 is 0.0, to which it is equal
    return torch.where(bits < 0, bits ^ largest, bits)  # of negative numbers, larger bits are lower


def _first(ties: Tensor, count: int, total: int, block: Block) -> Tensor:
    """Of a layer's True positions those with the ``count`` lowest flat indices."""
    if count in (0, total):
        return ties & (count > 0)
    positions = block.positions(ties.device).view(ties.shape)
    last = _key_of_rank([-positions[ties]], count, 64, [block])
    return ties & (positions <= -last)


def _key_of_rank(keys: Sequence[Tensor], rank: int, bits: int, blocks: Sequence[Block]) -> int:
    """The ``rank``-th largest of all processes' keys, from 1; signed integers of so many bits."""
    left = list(keys)
    found, above = 0, bits
    while above > 0:
        width = min(_DIGIT, above)
        above -= width
        # The highest digit is signed, so it is counted from its lowest value.
        lowest = -(1 << (width - 1)) if above + width == bits else 0
        digit = _digit(above, width, lowest)
        digits = [digit(some) for some in left]
        histogram = _sum_across([torch.bincount(some, minlength=1 << width) for some in digits], blocks)
        at_least = histogram.flip(0).cumsum(0).flip(0)
        value = int((at_least >= rank).sum()) - 1
        rank -= int(at_least[value] - histogram[value])
        left = [some[of == value] for some, of in zip(left, digits, strict=True)]
        found = (found << width) + value + lowest
    return found


def _digit(shift: int, width: int, lowest: int) -> Callable[[Tensor], Tensor]:
    if lowest:
        return lambda keys: (keys >> shift) - lowest
    return lambda keys: (keys >> shift) & ((1 << width) - 1)


def _sum_across(parts: Sequence[Tensor], blocks: Sequence[Block]) -> Tensor:
    """The sum over layers and processes, on the CPU; layers sharded alike are added up at once."""
    alike: dict[tuple[int, ...], tuple[Block, Tensor]] = {}
    for part, block in zip(parts, blocks, strict=True):
        key = tuple(map(id, block.groups))
        _, before = alike.get(key, (block, torch.zeros_like(part)))
        alike[key] = block, before + part.to(before.device)
    return torch.stack([block.sum(part).cpu() for block, part in alike.values()]).sum(0)
