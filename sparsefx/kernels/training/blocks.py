"""The layout in lanes of values that training keeps: a whole batch, in blocks of images.

A lane holds one image. As many images as there are lanes are a group, and ``together`` groups are a block::

    [blocks][channels][depth][rows][columns][together][lanes]

Small images alone would not give a convolution enough to do for each weight. With several groups side by
side, the columns of a block are ``columns * together``, and a window's next column is ``together`` further.

Take 40 images of 2 x 2 in groups of 8, and 4 groups together:

    >>> blocks = Blocks(channels=3, size=(1, 2, 2), images=40, together=4, lanes=8)
    >>> blocks.groups, blocks.count, blocks.columns
    (5, 2, 8)
    >>> [blocks.filled(group) for group in range(8)]
    [8, 8, 8, 8, 8, 0, 0, 0]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparsefx.kernels.codegen.vectors import LANES
from sparsefx.kernels.ir.program import DHW
from sparsefx.kernels.training.forms import as_int32

NONE: DHW = (0, 0, 0)


@dataclass(frozen=True)
class Blocks:
    """A value of a batch.

    Attributes:
        channels: of an image.
        size: depth, height and width of an image.
        images: of the batch.
        together: groups of a block.
        before: zeros before the image along each axis, in elements.
        after: zeros after it.
        lanes: images of a group.
    """

    channels: int
    size: DHW
    images: int
    together: int = 1
    before: DHW = NONE
    after: DHW = NONE
    lanes: int = LANES

    @property
    def groups(self) -> int:
        """Groups that hold images."""
        return -(-self.images // self.lanes)

    @property
    def count(self) -> int:
        """Blocks."""
        return -(-self.groups // self.together)

    @property
    def columns(self) -> int:
        """Vectors of a row inside of the border."""
        return self.size[2] * self.together

    @property
    def pitch(self) -> DHW:
        """Planes of a channel, rows of a plane and vectors of a row, with the border."""
        depth, height, width = (b + s + a for b, s, a in zip(self.before, self.size, self.after, strict=True))
        return depth, height, width * self.together

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return self.pitch[2] * self.vector

    @property
    def depth(self) -> int:
        """Bytes from one plane to the next."""
        return self.pitch[1] * self.row

    @property
    def channel(self) -> int:
        """Bytes from one channel to the next."""
        return self.pitch[0] * self.depth

    @property
    def block(self) -> int:
        """Bytes of a block."""
        return self.channels * self.channel

    @property
    def bytes(self) -> int:
        """Bytes of all blocks."""
        return self.count * self.block

    @property
    def vector(self) -> int:
        """Bytes of a group's place."""
        return 4 * self.lanes

    @property
    def start(self) -> int:
        """Bytes from a block's beginning to its first element inside of the border."""
        planes, rows, columns = self.before
        return planes * self.depth + rows * self.row + columns * self.together * self.vector

    @property
    def steps(self) -> DHW:
        """Bytes from one plane, row and column of an image to the next."""
        return self.depth, self.row, self.together * self.vector

    @property
    def bare(self) -> Blocks:
        """The same without a border."""
        return replace(self, before=NONE, after=NONE)

    def filled(self, group: int) -> int:
        """Lanes of a group that hold images."""
        return max(0, min(self.lanes, self.images - group * self.lanes))

    def is_full(self, block: int) -> bool:
        """Whether all lanes of a block hold images."""
        return (block + 1) * self.together * self.lanes <= self.images

    def places(self, group: int) -> NDArray[np.int32]:
        """Byte offsets within a channel of every place of a group's image."""
        where = np.indices(self.size).reshape(3, -1)
        offsets = np.tensordot(np.array(self.steps), where, axes=1) + group % self.together * self.vector
        return as_int32(offsets)


def groups_together(images: int, size: DHW, wanted: int) -> int:
    """How many groups to put side by side, for images of about ``wanted`` vectors; blocks are of equal size.

    >>> groups_together(images=16 * LANES, size=(1, 2, 2), wanted=8)
    2
    """
    groups = -(-images // LANES)
    together = min(groups, max(1, wanted // math.prod(size)))
    return -(-groups // -(-groups // together))
