"""Where a layer's nonzero weights are, as its kernels read them forward and backward.

The forward pass and the weight's gradient read weights by output channel, then by input channel and tap:
the order in which they are packed. The input's gradient is a convolution of the output's gradient, by
input channel, then by output channel and tap: the same values in another order. Of a convolution with
strides it is several, each of which makes every so-and-so-many-th position of the input, from the taps
that reach these positions.

A row of 5 inputs, windows of 3 that are 2 apart, no padding. Each input position is reached by the taps
that are even where it is even:

    >>> ones, forward = (1, 1, 1), dict(kernel=(1, 1, 3), stride=(1, 1, 2), dilation=(1, 1, 1))
    >>> for phase in phases((0, 0, 0), (1, 1, 5), **forward):
    ...     print(phase.first[2], phase.count[2], phase.taps, [shift[2] for shift in phase.shifts])
    0 3 (0, 2) [0, -1]
    1 2 (1,) [0]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsefx.kernels.ir.packed import are_short, begins_of, width_of
from sparsefx.kernels.ir.program import DHW, dhw
from sparsefx.kernels.training.program import SparseConvolution


@dataclass(frozen=True)
class Phase:
    """Input positions, a stride apart, whose gradient is one convolution of the output's gradient.

    Attributes:
        first: the first of them, by depth, height and width.
        count: how many there are along each axis.
        begin: the output position that belongs to the first one.
        taps: the taps of the forward window that reach them.
        shifts: of each tap, output positions from that which belongs to an input position to the one read.
    """

    first: DHW
    count: DHW
    begin: DHW
    taps: tuple[int, ...]
    shifts: tuple[DHW, ...]


def phases(padding: DHW, size: DHW, *, kernel: DHW, stride: DHW, dilation: DHW) -> Iterator[Phase]:
    """The phases of a convolution's input of this size; those without positions are left out."""
    by_axis = [
        [_along(rest, *of_axis) for rest in range(of_axis[1])]
        for of_axis in zip(kernel, stride, dilation, padding, size, strict=True)
    ]
    for axes in itertools.product(*by_axis):
        firsts, counts, begins, reached = zip(*axes, strict=True)
        first, count, begin = dhw(firsts), dhw(counts), dhw(begins)
        if min(count) < 1:
            continue
        taps, shifts = [], []
        for (d, sd), (h, sh), (w, sw) in itertools.product(*reached):
            taps.append((d * kernel[1] + h) * kernel[2] + w)
            shifts.append((sd, sh, sw))
        yield Phase(first, count, begin, tuple(taps), tuple(shifts))


def _along(
    rest: int, kernel: int, stride: int, dilation: int, padding: int, size: int
) -> tuple[int, int, int, list[tuple[int, int]]]:
    """One axis: first position, number of positions, output position of the first, and taps with shifts.

    Position ``i`` is read by output ``o`` at tap ``k`` where ``i + padding = stride o + dilation k``. With
    ``i + padding = stride m + rest``, taps are those with ``dilation k = rest`` modulo the stride, and ``o``
    is ``m - (dilation k - rest) / stride``.
    """
    begin = max(0, -(-(padding - rest) // stride))
    first = stride * begin + rest - padding
    count = max(0, -(-(size - first) // stride))
    taps = [
        (k, -((dilation * k - rest) // stride)) for k in range(kernel) if (dilation * k - rest) % stride == 0
    ]
    return first, count, begin, taps


@dataclass(frozen=True)
class Listed:
    """Nonzeros by row, then by column: see :class:`sparsefx.kernels.ir.packed.Packed`.

    Attributes:
        rows: where those of each segment of each row begin: int32 [out * segments + 1].
        codes: of each nonzero, its column times the number of taps, plus its tap: int16 or int32, padded.
        order: which of the packed values it is: int32 [nonzeros]; None where they are in order.
        segments: of a row.
    """

    rows: Tensor
    codes: Tensor
    order: Tensor | None
    segments: int
    nonzeros: int


@dataclass(frozen=True, eq=False)
class Pattern:
    """A layer's nonzeros, listed for a pass when it is first asked for.

    Attributes:
        item: the convolution.
        size: of its input.
        positions: of the nonzeros in the flat weight ``[out, in / groups, *kernel]``, ascending: int64.
    """

    item: SparseConvolution
    size: DHW
    positions: Tensor

    @cached_property
    def forward(self) -> Listed:
        """By output channel."""
        item = self.item
        return _listed(*self._places(), item.out_channels, item.in_channels, math.prod(item.kernel), None)

    @cached_property
    def backward(self) -> tuple[Listed, ...]:
        """By input channel, for each phase."""
        item, places = self.item, self._places()
        window = {"kernel": item.kernel, "stride": item.stride, "dilation": item.dilation}
        return tuple(self._of_phase(phase, *places) for phase in phases(item.padding, self.size, **window))

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output channel, input channel and tap of each nonzero."""
        item = self.item
        taps, inputs = math.prod(item.kernel), item.in_channels // item.groups
        row = self.positions // (inputs * taps)
        rest = self.positions - row * (inputs * taps)
        channel = rest // taps if taps > 1 else rest
        tap = rest - channel * taps
        if item.groups > 1:
            channel = channel + row // (item.out_channels // item.groups) * inputs
        return row, channel, tap

    def _of_phase(self, phase: Phase, out: Tensor, channel: Tensor, tap: Tensor) -> Listed:
        item, count = self.item, max(1, len(phase.taps))
        own = None
        if count < math.prod(item.kernel) or not phase.taps:
            number = torch.full((math.prod(item.kernel),), -1, device="cpu")
            number[list(phase.taps)] = torch.arange(len(phase.taps), device="cpu")
            own = (number[tap] >= 0).nonzero().flatten()
            out, channel, tap = out[own], channel[own], number[tap[own]]
        # What is sorted is by output channel already, so an order by input channel that keeps it is enough.
        order = torch.argsort(channel, stable=True) if count == 1 else self._sorted(out, channel, tap, count)
        rows, columns, taps = channel[order], out[order], tap[order]
        order = order if own is None else own[order]
        return _listed(rows, columns, taps, item.in_channels, item.out_channels, count, order)

    def _sorted(self, out: Tensor, channel: Tensor, tap: Tensor, count: int) -> Tensor:
        return torch.argsort((channel * self.item.out_channels + out) * count + tap)


def _listed(
    row: Tensor, column: Tensor, tap: Tensor, rows: int, columns: int, taps: int, order: Tensor | None
) -> Listed:
    width = width_of(rows, columns, len(row))
    begins = begins_of(row, column, rows, columns, width)
    codes = (column * taps + tap).to(torch.int16 if are_short(columns * taps) else torch.int32)
    order = None if order is None else order.to(torch.int32)
    return Listed(begins, codes.contiguous(), order, -(-columns // width), len(row))
