"""The layout of lanes: images side by side, or tiles of an image, that one instruction computes together.

A value is ``[channel][depth][row][column][lane]``. The lanes (8 or 16) hold as many images, or fewer
images cut into rows and columns of tiles. Around each tile is a border as wide as the layers that read
it reach: zeros outside of the image, the neighbouring lane's values inside.

Take four channels of an image of 4 x 6, in four lanes. The tensor has the elements of a channel row by
row; here are their numbers, and the lanes that hold them::

     0  1  2  3  4  5          lane 0:  0  1  2   lane 1:  3  4  5
     6  7  8  9 10 11    =>             6  7  8            9 10 11
    12 13 14 15 16 17          lane 2: 12 13 14   lane 3: 15 16 17
    18 19 20 21 22 23                  18 19 20           21 22 23

    >>> layout = Layout.of(4, (1, 4, 6), Split(images=1, rows=2, columns=2))
    >>> layout.tile  # depth, height and width
    (1, 2, 3)

In memory the lanes of a place are neighbours. A channel has 6 places, and the next channel follows:

    >>> def numbers(layout):
    ...     image, _, row, column = layout.coordinates()[:, :, :4]
    ...     return np.where(image < 0, -1, 6 * row + column)
    >>> numbers(layout)  # a row for each place, a column for each lane
    array([[ 0,  3, 12, 15],
           [ 1,  4, 13, 16],
           [ 2,  5, 14, 17],
           [ 6,  9, 18, 21],
           [ 7, 10, 19, 22],
           [ 8, 11, 20, 23]])

A window three columns wide also reads the column before a tile and the one after it. With this border a
row has five places, and the lanes on the left get copies of what those on the right hold, and the other
way round. Here is the first row, in which -1 is outside of the image, a zero:

    >>> numbers(layout.wider((0, 0, 1), (0, 0, 1)))[:5]
    array([[-1,  2, -1, 14],
           [ 0,  3, 12, 15],
           [ 1,  4, 13, 16],
           [ 2,  5, 14, 17],
           [ 3, -1, 15, -1]])
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparsefx.errors import ArgumentError
from sparsefx.kernels.codegen.vectors import LANES, VECTOR_BYTES
from sparsefx.kernels.ir.program import DHW

Offsets = NDArray[np.int32]


@dataclass(frozen=True)
class Split:
    """How many images, rows of tiles and columns of tiles the lanes hold."""

    images: int
    rows: int = 1
    columns: int = 1

    @property
    def parts(self) -> int:
        """Lanes of one image."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Layout:
    """Where a value's elements are.

    Attributes:
        channels: their number.
        size: depth, height and width of an image.
        split: what the lanes hold.
        tile: depth, height and width of what one lane holds; the last tiles may hold less.
        before: depth, rows and columns of border before a tile.
        after: and after it.
    """

    channels: int
    size: DHW
    split: Split
    tile: DHW
    before: DHW = (0, 0, 0)
    after: DHW = (0, 0, 0)

    @classmethod
    def of(cls, channels: int, size: DHW, split: Split) -> Layout:
        """The layout with the smallest tiles."""
        depth, height, width = size
        return cls(channels, size, split, (depth, -(-height // split.rows), -(-width // split.columns)))

    @property
    def bare(self) -> Layout:
        """Without a border."""
        return replace(self, before=(0, 0, 0), after=(0, 0, 0))

    @cached_property
    def room(self) -> DHW:
        """Depth, rows and columns of a tile with its border."""
        depth, height, width = (b + t + a for b, t, a in zip(self.before, self.tile, self.after, strict=True))
        return depth, height, width

    @cached_property
    def pitch(self) -> DHW:
        """Planes from one channel to the next, rows from one plane, and vectors from one row.

        Where one tile is the whole image, its border holds nothing, so that what comes after a row, plane or
        channel is what comes before the next.
        """
        parts = (1, self.split.rows, self.split.columns)
        depth, height, width = (
            t + (b + a if lanes > 1 else max(b, a))
            for b, t, a, lanes in zip(self.before, self.tile, self.after, parts, strict=True)
        )
        return depth, height, width

    @cached_property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return self.pitch[2] * VECTOR_BYTES

    @cached_property
    def depth(self) -> int:
        """Bytes from one plane to the next."""
        return self.pitch[1] * self.row

    @cached_property
    def channel(self) -> int:
        """Bytes from one channel to the next."""
        return self.pitch[0] * self.depth

    @property
    def bytes(self) -> int:
        """Bytes in all.

        Raises:
            ArgumentError: 32 bits do not tell the places of a channel, borders and all.
        """
        steps = self.depth, self.row, VECTOR_BYTES
        last = sum((length - 1) * step for length, step in zip(self.room, steps, strict=True))
        if last >= 2**31:
            raise ArgumentError(
                f"an image of {self.size} with borders of {self.before} and {self.after} is too large for "
                "sparse kernels, which tell places by 32 bits; export with kernels='dense'"
            )
        return (self.channels - 1) * self.channel + last + VECTOR_BYTES

    @property
    def start(self) -> int:
        """Bytes from the beginning to a tile's first element."""
        before_depth, before_row, before_column = self.before
        return before_depth * self.depth + before_row * self.row + before_column * VECTOR_BYTES

    def wider(self, before: DHW, after: DHW) -> Layout:
        """With borders at least as wide as these."""
        return replace(self, before=_larger(self.before, before), after=_larger(self.after, after))

    def coordinates(self) -> NDArray[np.int64]:
        """What each lane of each place of a channel holds.

        Returns:
            Image, depth, row and column: [4, places, lanes]; -1 outside of the image.
        """
        lanes = np.arange(LANES)
        image, tile_number = lanes // self.split.parts, lanes % self.split.parts
        image = np.where(image < self.split.images, image, -1)
        tiles = (np.zeros(LANES, int), tile_number // self.split.columns, tile_number % self.split.columns)
        axes = []
        for axis, tile_index in enumerate(tiles):
            places = np.arange(self.room[axis]) - self.before[axis]
            values = tile_index[None, :] * self.tile[axis] + places[:, None]
            outside = (values < 0) | (values >= self.size[axis])
            axes.append(np.where(outside, -1, values))
        shape = (*self.room, LANES)
        grid = [np.broadcast_to(image, shape)]
        for axis, values in enumerate(axes):
            index = [None, None, None, slice(None)]
            index[axis] = slice(None)
            grid.append(np.broadcast_to(values[tuple(index)], shape))
        result = np.stack([g.reshape(-1, LANES) for g in grid])
        return np.where((result < 0).any(0), -1, result)

    def own(self) -> NDArray[np.bool_]:
        """Which places of a channel are a tile's own, not its border: [places]."""
        inside = np.zeros(self.room, bool)
        slices = tuple(slice(b, b + t) for b, t in zip(self.before, self.tile, strict=True))
        inside[slices] = True
        return inside.reshape(-1)

    def places(self) -> Offsets:
        """Byte offset of each place of a channel."""
        depth, row, column = np.indices(self.room, np.int32).reshape(3, -1)
        offsets: Offsets = depth * self.depth + row * self.row + column * VECTOR_BYTES
        return offsets

    def elements(self, where: NDArray[np.int64]) -> Offsets:
        """Offset in floats, within a channel, of elements by their coordinates; -1 where those are -1."""
        image, depth, row, column = where
        _, tile_height, tile_width = self.tile
        lane = image * self.split.parts + (row // tile_height) * self.split.columns + column // tile_width
        before_depth, before_row, before_column = self.before
        place = (depth + before_depth) * self.pitch[1] + row % tile_height + before_row
        place = place * self.pitch[2] + column % tile_width + before_column
        return np.where(image < 0, -1, place * LANES + lane).astype(np.int32)


def _larger(first: DHW, second: DHW) -> DHW:
    return max(first[0], second[0]), max(first[1], second[1]), max(first[2], second[2])


def split_for(images: int, size: DHW) -> Split:
    """What wastes the fewest lanes, and reaches least over borders, for so many images, at most 16."""
    images = min(LANES, 1 << max(images - 1, 0).bit_length())
    _, height, width = size
    parts = LANES // images
    candidates = [
        Split(images, rows, parts // rows)
        for rows in (1 << n for n in range(parts.bit_length()))
        if parts % rows == 0
    ]

    def cost(split: Split) -> int:
        return (-(-height // split.rows) + 1) * (-(-width // split.columns) + 1)

    return min(candidates, key=cost)
