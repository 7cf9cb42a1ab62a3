"""Layouts of what windows slide over and of what comes out, such that each lane reads its own tile.

Take four channels of images of 8 x 8, each in four lanes. A lane has a tile of 4 x 4:

    >>> from sparsefx.kernels.codegen.vectors import LANES
    >>> images = LANES // 4
    >>> source = Layout.of(4, (1, 8, 8), split_for(images, (1, 8, 8)))
    >>> source.split.rows, source.split.columns, source.tile
    (2, 2, (1, 4, 4))

A pool of 2 x 2 makes images of 4 x 4. Each lane computes 2 x 2 of them from what it holds, so the source
stays as it is, and needs no border::

    a a b b | c c d d
    a a b b | c c d d          a b | c d
    e e f f | g g h h    =>    e f | g h      (the upper two lanes)
    e e f f | g g h h

    >>> pool = Pool(0, True, kernel=(1, 2, 2), stride=(1, 2, 2), padding=(0, 0, 0))
    >>> before, after = slide(pool, source, 4, images)
    >>> before == source, after.size, after.tile, reach(pool, before, after)
    (True, (1, 4, 4), (1, 2, 2), (0, 0, 0))

Windows of 3 x 3, one apart, leave the tiles as they are, but reach one row and one column beyond them:

    >>> windows = Pool(0, True, kernel=(1, 3, 3), stride=(1, 1, 1), padding=(0, 1, 1))
    >>> before, after = slide(windows, source, 4, images)
    >>> before == source, after.tile, reach(windows, before, after)
    (True, (1, 4, 4), (0, 1, 1))

Windows that are 3 apart do not fit tiles of 4: the second lane's first window would begin in the first
lane. So the source is laid out anew, with 3 columns in each lane, and a lane computes one column of the
3 x 3:

    >>> apart = Pool(0, True, kernel=(1, 3, 3), stride=(1, 3, 3), padding=(0, 1, 1))
    >>> before, after = slide(apart, source, 4, images)
    >>> before.split.columns, before.tile, after.size, after.tile
    (4, (1, 8, 3), (1, 3, 3), (1, 3, 1))
"""

from __future__ import annotations

import math
from dataclasses import replace

from sparsefx.kernels.ir.program import DHW, Convolution, Pool
from sparsefx.kernels.ir.shapes import slid
from sparsefx.kernels.planner.lanes import Layout, split_for

_WORTH = 1.25  # a layout with fewer places is taken where the present one has this many times as many


def slide(item: Convolution | Pool, source: Layout, channels: int, images: int) -> tuple[Layout, Layout]:
    """Layouts of the source and of the result; the source stays as it is where that is not wasteful.

    Args:
        item: what slides.
        source: the source's layout now.
        channels: of the result.
        images: at once.
    """
    size = slid(source.size, item)
    result = _follow(source, channels, size, item.stride)
    best = Layout.of(channels, size, split_for(images, size))
    if result is None or math.prod(result.tile) > _WORTH * math.prod(best.tile):
        result = _reachable(best, source.size, item.stride)
        source = _needed(result, source, item.stride)
    return source, result


def reach(item: Convolution | Pool, source: Layout, result: Layout) -> DHW:
    """Depth, rows and columns that the windows of a tile read beyond the end of the source's."""
    dilation = item.dilation if isinstance(item, Convolution) else (1, 1, 1)
    depth, rows, columns = (
        max(0, (tile - 1) * step + (window - 1) * spread + 1 - pad - own)
        for tile, step, window, spread, pad, own in zip(
            result.tile, item.stride, item.kernel, dilation, item.padding, source.tile, strict=True
        )
    )
    return depth, rows, columns


def _follow(source: Layout, channels: int, size: DHW, stride: DHW) -> Layout | None:
    """The layout in which each lane computes from its own part of the source, if there is one."""
    tile = list(size)
    for axis, lanes in ((1, source.split.rows), (2, source.split.columns)):
        if lanes > 1:
            tile[axis], rest = divmod(source.tile[axis], stride[axis])
            if rest or tile[axis] * lanes < size[axis]:
                return None
    return Layout(channels, size, source.split, (tile[0], tile[1], tile[2]))


def _reachable(layout: Layout, source: DHW, stride: DHW) -> Layout:
    """``layout`` with tiles so large that those of its source hold all of it."""
    tile = list(layout.size)
    for axis, lanes in ((1, layout.split.rows), (2, layout.split.columns)):
        if lanes > 1:
            tile[axis] = max(layout.tile[axis], -(-source[axis] // (lanes * stride[axis])))
    return replace(layout, tile=(tile[0], tile[1], tile[2]))


def _needed(layout: Layout, source: Layout, stride: DHW) -> Layout:
    """The layout of a source from which each lane computes its part of ``layout``."""
    tile = list(source.size)
    for axis, lanes in ((1, layout.split.rows), (2, layout.split.columns)):
        if lanes > 1:
            tile[axis] = layout.tile[axis] * stride[axis]
    return Layout(source.channels, source.size, layout.split, (tile[0], tile[1], tile[2]))
