"""A layer's nonzero weights in the order in which the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx.kernels.code import TAP_BITS

MOST_TAPS = 2**TAP_BITS
MOST_CHANNELS = 2 ** (31 - TAP_BITS)


@dataclass(frozen=True)
class Packed:
    """Nonzero weights, input channels taken in blocks.

    Attributes:
        rows: where the nonzeros of each output channel begin, block by block: int32 [blocks * out + 1].
        codes: input channel and tap of each nonzero: int32 [nonzeros].
        values: the nonzeros: float32 [nonzeros].
        bias: float32 [out].
    """

    rows: Tensor
    codes: Tensor
    values: Tensor
    bias: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, in this order."""
        return self.rows, self.codes, self.values, self.bias


def can_pack(weight: Tensor, groups: int) -> bool:
    """Whether a weight is where the kernels are, and its channels and taps have codes."""
    taps = weight[0, 0].numel() if weight.numel() and weight.device.type == "cpu" else 0
    return bool(0 < taps <= MOST_TAPS and weight.shape[1] * groups <= MOST_CHANNELS)


def pack(weight: Tensor, bias: Tensor | None, groups: int, block: int) -> Packed:
    """Pack a layer.

    Args:
        weight: ``[out, in / groups, *kernel]``.
        bias: ``[out]``, or None for zeros.
        groups: as of the convolution.
        block: input channels at a time.
    """
    out, inputs = weight.shape[:2]
    flat = weight.detach().reshape(out, inputs, -1)
    channel_out, channel, tap = flat.nonzero(as_tuple=True)
    values = flat[channel_out, channel, tap].float()
    channel = channel + channel_out // (out // groups) * inputs
    blocks = -(-inputs * groups // block)
    slot = channel // block * out + channel_out
    order = slot.argsort(stable=True)
    rows = torch.zeros(blocks * out + 1, dtype=torch.int32)
    rows[1:] = slot.bincount(minlength=blocks * out).cumsum(0)
    codes = (channel << TAP_BITS | tap)[order].int()
    filled = torch.zeros(out) if bias is None else bias.detach().float().clone()
    return Packed(rows, codes, values[order].contiguous(), filled)


def unpack(packed: Packed, shape: tuple[int, ...], groups: int) -> Tensor:
    """The weight of this shape that was packed, in float32."""
    out, inputs = shape[:2]
    weight = torch.zeros(out, inputs, *shape[2:]).reshape(out, inputs, -1)
    counts = packed.rows.diff().long()
    channel_out = torch.arange(len(counts)).repeat_interleave(counts) % out
    channel = (packed.codes >> TAP_BITS).long() - channel_out // (out // groups) * inputs
    weight[channel_out, channel, (packed.codes & MOST_TAPS - 1).long()] = packed.values
    return weight.reshape(shape)
