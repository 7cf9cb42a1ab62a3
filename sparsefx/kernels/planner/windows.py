"""Layouts of what windows slide over and of what comes out, such that each lane reads its own part."""

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
