"""How many input channels a convolution takes at a time."""

from __future__ import annotations

from torch import Tensor

_ENOUGH = 6  # nonzeros of an output channel in a block that pay for taking its sums up again
_FEWEST = 12


def choose_block(weight: Tensor, groups: int) -> int:
    """Few enough for their inputs to stay in the first-level cache, with enough nonzeros to be worth while.

    Args:
        weight: ``[out, in / groups, *kernel]``.
        groups: as of the convolution.
    """
    channels = weight.shape[1] * groups
    nonzeros = int(weight.count_nonzero())
    a_channel = nonzeros / max(weight.shape[0] * channels, 1)  # of an output channel
    block = max(_FEWEST, round(_ENOUGH / a_channel) if a_channel else channels)
    return max(1, min(channels, block))
