"""How a convolution is divided: which tile of positions, and which block of input channels, at a time.

Take a 3 x 3 convolution of four channels to four, 36 of whose 144 weights are not zero. A lane holds 4 x
4 positions of the result. The plain way is a position at a time::

    for position in 16:                             for tile in 2:            # of 2 x 4 positions
        for output in 4:                                for block in 2:       # of 2 input channels
            for weight in nonzeros(output):     =>          for output in 4:
                sum += weight * input                           for weight in nonzeros(output, block):
                                                                    8 sums += weight * 8 inputs

Each weight is then read for a tile, not for a position, and its sums stay in registers meanwhile. While
a block is computed, all outputs read the same two channels, which stay in the first level of the cache;
between blocks the sums wait in memory. The numbers of tiles and of blocks, and how often a weight is
read:

    >>> window, ones = (1, 3, 3), (1, 1, 1)
    >>> item = Convolution(0, (0, 0, 0), 4, 4, window, ones, (0, 1, 1), ones, segments=4, nonzeros=36)
    >>> tiling = Tiling(Tile(2, 4, unroll=1, stride=1), together=2)
    >>> tiles, blocks = tiling.tile.count((1, 4, 4)), item.segments // tiling.together
    >>> tiles, blocks, item.nonzeros * tiles
    (2, 2, 72)

Two blocks pay for large inputs only. Here the model takes all four channels at a time:

    >>> choose_tiling(item, (1, 4, 4), (1, 5, 5)).together
    4
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from sparsefx.kernels.codegen.convolution import Tile
from sparsefx.kernels.codegen.vectors import LANES, SUMS, VECTOR_BYTES
from sparsefx.kernels.ir.packed import are_short
from sparsefx.kernels.ir.program import DHW, Convolution

_FORMS = tuple(
    (rows, columns) for rows in (1, 2, 4) for columns in (1, 2, 4, 7, 8, 14, 16) if rows * columns <= SUMS
)
"""Tiles, each of which is a kernel to compile."""

_BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BUSY = 6  # sums that keep the multiply-add unit busy


@dataclass(frozen=True)
class Costs:
    """Cycles that parts of a convolution take.

    Attributes:
        nonzero: of a tile, for each nonzero.
        row: of each row of a tile, for each nonzero.
        visit: of an output channel, for each block.
        wait: for each sum that is stored and taken up again.
        jump: for each nonzero, once, if there are blocks: weights come slowly if not one after the other.
        loads: of a load, by the bytes among which it falls: about what the first two levels of cache hold,
            and more.
    """

    nonzero: float
    row: float
    visit: float
    wait: float
    jump: float
    loads: tuple[tuple[float, float], ...]


# Fitted by benchmarks/tilings.py to the times of 5,500 tilings of 172 layers on a processor with AVX-512
# (Zen 4), and of 3,900 of 82 layers on one with AVX2 (Zen 3).
_COSTS = (
    Costs(0.65, 0.64, 20.0, 1.5, 0.3, ((50 * 1024, 1.3), (228 * 1024, 1.7), (math.inf, 1.9)))
    if LANES == 16
    else Costs(2.4, 0.21, 23.0, 1.6, 0.0, ((21 * 1024, 1.3), (88 * 1024, 1.8), (math.inf, 2.2)))
)

_MOVES = ((704 * 1024, 0.0), (3 * 1024 * 1024, 2.0), (math.inf, 12.0))
"""Of moving a vector once, by the bytes of the value that it belongs to."""


@dataclass(frozen=True)
class Tiling:
    """What a convolution computes at a time.

    Attributes:
        tile: output positions.
        together: segments of input channels.
    """

    tile: Tile
    together: int


@cache
def choose_tiling(item: Convolution, size: DHW, pitch: DHW) -> Tiling:
    """The one that takes the least time by the model below.

    Args:
        item: the convolution.
        size: of what a lane holds of the result.
        pitch: of the source's layout.
    """
    return min(candidates(item, size), key=lambda tiling: tiling_cost(tiling, item, size, pitch))


def candidates(item: Convolution, size: DHW) -> Iterator[Tiling]:
    """All that are sensible."""
    _, height, width = size
    blocks = {-(-item.segments // count) for count in _BLOCKS}
    short = are_short(item.codes)
    for rows, columns in _FORMS:
        if rows <= height and columns <= width:
            unroll = 1
            while rows * columns * unroll < _BUSY:  # doubles
                unroll *= 2
            for together in blocks:
                yield Tiling(Tile(rows, columns, unroll, item.stride[2], short), together)


def tiling_cost(tiling: Tiling, item: Convolution, size: DHW, pitch: DHW) -> float:
    """Cycles that it takes, about.

    Every nonzero costs something besides its loads, every visit of an output channel for a block as well, and
    sums that wait for the next block are stored and loaded. What a load costs depends on how large the part
    of the input is that a tile reads for a block.
    """
    tile = tiling.tile
    blocks = -(-item.segments // tiling.together)
    channels = item.in_channels * tiling.together / item.segments
    reach = (
        item.kernel[0],
        (tile.height - 1) * item.stride[1] + item.kernel[1],
        (tile.width - 1) * item.stride[2] + item.kernel[2],
    )
    bytes_read = channels * math.prod(map(min, reach, pitch)) * VECTOR_BYTES
    load = _by_size(_COSTS.loads, bytes_read)
    nonzeros = item.nonzeros * (_COSTS.nonzero + _COSTS.row * tile.height + tile.positions * load)
    visits = item.out_channels * blocks * (_COSTS.visit + (_COSTS.wait * tile.positions if blocks > 1 else 0))
    jumps = _COSTS.jump * item.nonzeros if blocks > 1 else 0
    return tile.count(size) * (nonzeros + visits) + jumps


def channel_parts(tiles: int, channels: int, threads: int) -> int:
    """Into how many parts the output channels are divided, for every thread to have work."""
    if tiles % threads == 0 or tiles >= 8 * threads:
        return 1
    return min(threads, channels)


def moving(size: int) -> float:
    """Cycles to read or write so many bytes once, by where they are."""
    return size / VECTOR_BYTES * _by_size(_MOVES, size)


def _by_size(table: tuple[tuple[float, float], ...], size: float) -> float:
    return next(cycles for most, cycles in table if size <= most)
