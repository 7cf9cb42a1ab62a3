"""Which tile a convolution computes at a time."""

from __future__ import annotations

from functools import cache

from sparsefx.kernels.code.convolution import Tile

_MOST_POSITIONS = 16  # sums in registers, with room for the inputs and the weight; AVX-512 has 32
_BUSY = 6  # sums that keep the multiply-add unit busy
_OVERHEAD = 3  # what a nonzero costs besides its multiply-adds, in multiply-adds


@cache
def choose_tile(height: int, width: int, stride: int) -> Tile:
    """The tile that covers an image of this size with the least work."""
    forms = [
        (rows, columns)
        for rows in range(1, min(height, 4) + 1)
        for columns in range(1, min(width, _MOST_POSITIONS // rows) + 1)
    ]

    def cost(form: tuple[int, int]) -> tuple[int, int]:
        rows, columns = form
        tiles = -(-height // rows) * -(-width // columns)
        reach = (rows + 2) * (columns + 2)
        return tiles * (rows * columns + _OVERHEAD), tiles * reach

    rows, columns = min(forms, key=cost)
    unroll = 1
    while rows * columns * unroll < _BUSY:
        unroll *= 2
    return Tile(rows, columns, unroll, stride)
