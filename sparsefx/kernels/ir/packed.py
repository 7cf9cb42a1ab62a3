"""A layer's nonzero weights in the order in which the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsefx.kernels.ir.program import Convolution

MOST_CODES = 2**24
"""Of a layer: its input channels times its taps, which are the places in a kernel window."""

MOST_INDICES = 2**31 - 1
"""That 32 bits can number."""

_A_SEGMENT = 6  # nonzeros of an output channel in a segment


@dataclass(frozen=True)
class Packed:
    """Nonzero weights by output channel, then by input channel, which come in segments of equal width.

    Attributes:
        rows: where those of each segment of each output channel begin: int32 [out * segments + 1].
        codes: of each nonzero, its input channel times the number of taps, plus its tap: int16, or int32
            where there are too many, [nonzeros].
        values: the nonzeros: float32 [nonzeros].
        bias: float32 [out].
    """

    rows: Tensor
    codes: Tensor
    values: Tensor
    bias: Tensor


@dataclass
class Weights:
    """The weights of all layers of a region, one after the other in three tensors."""

    _indices: list[Tensor] = field(default_factory=list)
    _codes: list[Tensor] = field(default_factory=list)
    _values: list[Tensor] = field(default_factory=list)

    def add(self, packed: Packed) -> tuple[int, int, int]:
        """Where a layer's rows, codes and values begin."""
        codes = self._codes if packed.codes.dtype == torch.int16 else self._indices
        begun = (
            _append(self._indices, packed.rows),
            _append(codes, packed.codes),
            _append(self._values, packed.values),
        )
        _append(self._values, packed.bias)
        return begun

    def add_factors(self, factors: Tensor, summands: Tensor) -> int:
        """Append the factors and summands [C] of channels; returns where the factors begin."""
        begun = _append(self._values, factors)
        _append(self._values, summands)
        return begun

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Three vectors: rows and codes of 32 bits; codes of 16 bits; values, then biases, in float32."""
        types = (torch.int32, torch.int16, torch.float32)
        indices, codes, values = (
            torch.cat([torch.empty(0, dtype=type_, device="cpu"), *listed])
            for type_, listed in zip(types, (self._indices, self._codes, self._values), strict=True)
        )
        return indices, codes, values


def _append(listed: list[Tensor], tensor: Tensor) -> int:
    begun = sum(map(len, listed))
    listed.append(tensor)
    return begun


def packed_at(item: Convolution, tensors: Sequence[Tensor]) -> Packed:
    """A layer's part of a region's three vectors."""
    indices, codes, values = tensors
    row, code, value = item.weights
    coded = codes if are_short(item.codes) else indices
    bias = value + item.nonzeros
    return Packed(
        indices[row : row + item.out_channels * item.segments + 1],
        coded[code : code + item.nonzeros],
        values[value:bias],
        values[bias : bias + item.out_channels],
    )


def can_pack(weight: Tensor, groups: int) -> bool:
    """Whether a weight ``[out, in / groups, *kernel]`` is on the CPU and small enough for codes."""
    codes = weight[0].numel() * groups if weight.numel() and weight.device.type == "cpu" else 0
    return 0 < codes <= MOST_CODES


def are_short(codes: int) -> bool:
    """Whether 16 bits are enough for so many codes; otherwise they have 32."""
    return codes <= 2**15


def segment_width(weight: Tensor, groups: int) -> int:
    """Input channels of a segment, few enough to build blocks of any size from, and not too many to mark.

    Args:
        weight: ``[out, in / groups, *kernel]``.
        groups: as of the convolution.
    """
    return width_of(weight.shape[0], weight.shape[1] * groups, int(weight.count_nonzero()))


def width_of(rows: int, columns: int, nonzeros: int) -> int:
    """Columns of a segment, of a matrix with so many nonzeros."""
    width = round(_A_SEGMENT * rows * columns / nonzeros) if nonzeros else columns
    return max(1, min(columns, width))


def begins_of(row: Tensor, column: Tensor, rows: int, columns: int, width: int) -> Tensor:
    """Where the nonzeros of each segment of each row begin: int32 [rows * segments + 1].

    Args:
        row: of each nonzero, by row and then by column: int64 [nonzeros].
        column: of each: int64 [nonzeros].
        rows: of the matrix.
        columns: of the matrix.
        width: columns of a segment.
    """
    segments = -(-columns // width)
    begins = torch.zeros(rows * segments + 1, dtype=torch.int32, device="cpu")
    begins[1:] = (row * segments + column // width).bincount(minlength=rows * segments).cumsum(0)
    return begins


def pack(weight: Tensor, bias: Tensor | None, groups: int, width: int) -> Packed:
    """Pack a layer.

    Args:
        weight: ``[out, in / groups, *kernel]``.
        bias: ``[out]``, or None for zeros.
        groups: as of the convolution.
        width: input channels of a segment.
    """
    out, inputs = weight.shape[:2]
    flat = weight.detach().reshape(out, inputs, -1)
    channel_out, channel, tap = flat.nonzero(as_tuple=True)
    values = flat[channel_out, channel, tap].float()
    channel = channel + channel_out // (out // groups) * inputs
    rows = begins_of(channel_out, channel, out, inputs * groups, width)
    taps = flat.shape[2]
    codes = (channel * taps + tap).to(torch.int16 if are_short(inputs * groups * taps) else torch.int32)
    filled = (
        torch.zeros(out, dtype=torch.float32, device="cpu") if bias is None else bias.detach().float().clone()
    )
    return Packed(rows, codes, values, filled)


def unpack(packed: Packed, shape: tuple[int, ...], groups: int) -> Tensor:
    """The weight of this shape that was packed, in float32."""
    out, inputs = shape[:2]
    weight = torch.zeros(out, inputs, *shape[2:], dtype=torch.float32, device="cpu").reshape(out, inputs, -1)
    counts = packed.rows.diff().long()
    channel_out = torch.arange(len(counts), device="cpu").repeat_interleave(counts) // (len(counts) // out)
    codes, taps = packed.codes.long(), weight.shape[2]
    weight[channel_out, codes // taps - channel_out // (out // groups) * inputs, codes % taps] = packed.values
    return weight.reshape(shape)
