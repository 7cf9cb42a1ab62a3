"""How a convolution is divided: which tile of positions, and which block of input channels, at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from sparsefx.kernels.code import VECTOR_BYTES
from sparsefx.kernels.code.convolution import Tile
from sparsefx.kernels.packed import are_short
from sparsefx.kernels.program import Convolution, Three

_FORMS = tuple(
    (rows, columns)
    for rows in (1, 2, 4)
    for columns in (1, 2, 4, 7, 8, 14, 16)
    if rows * columns <= 16  # sums in registers, with room for the inputs and the weight; AVX-512 has 32
)
"""Tiles, each of which is a kernel to compile."""

_BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BUSY = 6  # sums that keep the multiply-add unit busy

# Cycles; fitted to the times of 5,500 tilings of 172 layers on a processor with AVX-512 (Zen 4), with the
# weights in its caches and without. The tiling that the model likes best takes 5% longer than the best one in
# the mean.
_NONZERO = 0.65
_ROW = 0.64  # of a tile, for each nonzero
_VISIT = 20.0  # of an output channel, for each block
_WAIT = 1.5  # for each sum that is stored and taken up again
_JUMP = 0.3  # for each nonzero, once, if there are blocks: weights come slowly if not one after the other
_LOADS = ((50 * 1024, 1.3), (228 * 1024, 1.7), (math.inf, 1.9))
"""Of a load, by the bytes among which it falls: about what the first two levels of cache hold, and more."""

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
def choose_tiling(item: Convolution, size: Three, pitch: Three) -> Tiling:
    """The one that takes the least time by the model below.

    Args:
        item: the convolution.
        size: of what a lane holds of the result.
        pitch: of the source's layout.
    """
    return min(candidates(item, size), key=lambda tiling: tiling_cost(tiling, item, size, pitch))


def candidates(item: Convolution, size: Three) -> Iterator[Tiling]:
    """All that are sensible."""
    _, height, width = size
    blocks = {-(-item.segments // count) for count in _BLOCKS}
    short = are_short(item.codes)
    for rows, columns in _FORMS:
        if rows <= height and columns <= width:
            unroll = 1
            while rows * columns * unroll < _BUSY:
                unroll *= 2
            for together in blocks:
                yield Tiling(Tile(rows, columns, unroll, item.stride[2], short), together)


def tiling_cost(tiling: Tiling, item: Convolution, size: Three, pitch: Three) -> float:
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
    load = _by_size(_LOADS, bytes_read)
    nonzeros = item.nonzeros * (_NONZERO + _ROW * tile.height + tile.positions * load)
    visits = item.out_channels * blocks * (_VISIT + (_WAIT * tile.positions if blocks > 1 else 0))
    jumps = _JUMP * item.nonzeros if blocks > 1 else 0
    return tile.count(size) * (nonzeros + visits) + jumps


def moving(size: int) -> float:
    """Cycles to read or write so many bytes once, by where they are."""
    return size / VECTOR_BYTES * _by_size(_MOVES, size)


def _by_size(table: tuple[tuple[float, float], ...], size: float) -> float:
    return next(cycles for most, cycles in table if size <= most)
