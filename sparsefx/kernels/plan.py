"""A program for given sizes: layouts, memory and the list of kernels to call with their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsefx.kernels import native, team
from sparsefx.kernels.code import VECTOR_BYTES
from sparsefx.kernels.code.driving import DRIVE, HEAD, STEP
from sparsefx.kernels.lanes import Layout, Split, split_for
from sparsefx.kernels.memory import place
from sparsefx.kernels.program import (
    Concatenate,
    Convolution,
    Instruction,
    Mean,
    Pointwise,
    Pool,
    Program,
    Three,
)
from sparsefx.kernels.shapes import slid
from sparsefx.kernels.steps import (
    Address,
    Argument,
    Border,
    Compute,
    Convolve,
    Copy,
    Enter,
    Leave,
    MeanOfImage,
    Outside,
    PoolWindows,
    Relay,
    Step,
    Value,
)
from sparsefx.kernels.tiles import choose_tile

IMAGES = 16
ROWS = 256
"""Images, or rows of a linear layer, that a plan computes at once; more are taken in turns."""

_WORTH = 1.25  # a layout with fewer places is taken where the present one has this many times as many


@dataclass(frozen=True)
class Given:
    """What a plan is made for, of each input.

    Attributes:
        channels: their number.
        size: depth, height and width.
        steps: elements from one image, plane, row and column to the next.
        channel: elements from one channel to the next.
    """

    channels: int
    size: Three
    steps: tuple[int, int, int, int]
    channel: int


class Plan:
    """Steps in lanes for so many images.

    Args:
        program: what to compute.
        given: its inputs.
        count: images, or rows where the program is one on rows.
        threads: that it will be run by.
    """

    def __init__(self, program: Program, given: Sequence[Given], count: int, threads: int) -> None:
        self.program, self.count, self.threads = program, count, threads
        self.steps: list[Step] = []
        self.values: list[Value] = []
        for index, item in enumerate(given):
            self._enter(index, item)
        for instruction in program.instructions:
            self.values.append(self._instruction(instruction))
        for index, output in enumerate(program.outputs):
            self._leave(len(given) + index, self.values[output])
        self.bytes = place(self.steps, threads)
        self._emit()

    def output_size(self, index: int) -> tuple[int, Three]:
        """Channels, and depth, height and width, of an output."""
        layout = self.values[self.program.outputs[index]].layout
        return layout.channels, layout.size

    def _enter(self, index: int, given: Given) -> None:
        split = Split(1, 1, 16) if self.program.dims == 0 else split_for(self.count, given.size)
        value = Value(Layout.of(given.channels, given.size, split), bordered=True)
        source = Outside(Address(index), self._images, given.steps, given.channel)
        self.steps.append(Enter(source, value))
        self.values.append(value)

    @property
    def _images(self) -> int:
        return 1 if self.program.dims == 0 else self.count

    def _leave(self, tensor: int, value: Value) -> None:
        channels, (depth, height, width) = value.layout.channels, value.layout.size
        if self.program.dims == 0:
            target = Outside(Address(tensor), 1, (0, 0, 0, channels), 1)
        else:
            plane = depth * height * width
            steps = (channels * plane, height * width, width, 1)
            target = Outside(Address(tensor), self.count, steps, plane)
        self.steps.append(Leave(value, target))

    def _instruction(self, item: Instruction) -> Value:
        source = self.values[item.source]
        if isinstance(item, Mean):
            return self._mean(source)
        if isinstance(item, Pointwise):
            return self._pointwise(item, source)
        if isinstance(item, Concatenate):
            return self._concatenate(item, source)
        if isinstance(item, Pool):
            return self._pool(item, source)
        return self._convolution(item, source)

    def _mean(self, source: Value) -> Value:
        source.bordered = True
        layout = Layout(source.layout.channels, (1, 1, 1), source.layout.split, (1, 1, 1))
        return self._add(MeanOfImage(source, Value(layout, source.nonnegative)))

    def _pool(self, item: Pool, source: Value) -> Value:
        source, layout = self._slide(item, source, source.layout.channels)
        if item.largest and any(item.padding) and not source.nonnegative:
            copy = Value(source.layout, outside=-np.inf)
            self.steps.append(Relay(source, copy))
            source = copy
        self._reach(item, source, layout)
        return self._add(PoolWindows(item, source, Value(layout, source.nonnegative)))

    def _convolution(self, item: Convolution, source: Value) -> Value:
        source, layout = self._slide(item, source, item.out_channels)
        self._reach(item, source, layout)
        residual = None if item.residual is None else self._in_layout(self.values[item.residual], layout)
        tile = choose_tile(*layout.tile[1:], item.stride[2])
        step = Convolve(
            item,
            self._weights(item.weights),
            source,
            Value(layout, item.bounds[0] >= 0),
            residual,
            tile,
            self._parts(layout, tile.height, tile.width),
        )
        return self._add(step)

    def _pointwise(self, item: Pointwise, source: Value) -> Value:
        other = None if item.other is None else self.values[item.other]
        if other is not None and other.layout.size != source.layout.size:
            other = self._spread(other, source.layout.split)
        elif other is not None:
            other = self._in_layout(other, source.layout)
        factors = None if item.weights is None else self._weights(item.weights, 2)
        value = Value(_bare(source.layout), item.bounds[0] >= 0)
        return self._add(Compute(item, factors, source, other, value))

    def _spread(self, value: Value, split: Split) -> Value:
        """A copy of a value of one element a channel, in every lane of its image."""
        layout = Layout(value.layout.channels, (1, 1, 1), split, (1, 1, 1))
        return self._add(Relay(value, Value(layout, value.nonnegative), everywhere=True))

    def _concatenate(self, item: Concatenate, first: Value) -> Value:
        sources = [self._in_layout(self.values[index], first.layout) for index in item.sources]
        channels = sum(source.layout.channels for source in sources)
        value = Value(
            replace(_bare(first.layout), channels=channels), all(source.nonnegative for source in sources)
        )
        start = 0
        for source in sources:
            self.steps.append(Copy(source, value, start))
            start += source.layout.channels
        self.steps.append(Border(value))
        return value

    def _weights(self, first: int, count: int = 4) -> tuple[Address, ...]:
        start = self.program.inputs + len(self.program.outputs) + first
        return tuple(Address(start + index) for index in range(count))

    def _parts(self, layout: Layout, height: int, width: int) -> int:
        """Into how many parts the output channels are divided, for every thread to have work."""
        depth, rows, columns = layout.tile
        tiles = depth * -(-rows // height) * -(-columns // width)
        if tiles % self.threads == 0 or tiles >= 8 * self.threads:
            return 1
        return min(self.threads, layout.channels)

    def _add(self, step: Step) -> Value:
        value = step.writes
        assert value is not None
        self.steps += [step, Border(value)]
        return value

    def _slide(self, item: Convolution | Pool, source: Value, channels: int) -> tuple[Value, Layout]:
        """The source as the windows need it, and the result's layout: each lane has the same part in both."""
        size = slid(source.layout.size, item)
        layout = _follow(source.layout, channels, size, item.stride)
        best = Layout.of(channels, size, split_for(self._images, size))
        if self.program.dims and (layout is None or _places(layout) > _WORTH * _places(best)):
            layout = _reachable(best, source.layout.size, item.stride)
            needed = _needed(layout, source.layout, item.stride)
            source = self._in_layout(source, needed)
        assert layout is not None
        return source, layout

    def _in_layout(self, value: Value, layout: Layout) -> Value:
        """The value, or a copy, whose tiles are as in ``layout``."""
        if (value.layout.split, value.layout.tile) == (layout.split, layout.tile):
            return value
        target = replace(_bare(layout), channels=value.layout.channels)
        copy = Value(target, value.nonnegative)
        self.steps.append(Relay(value, copy))
        return copy

    def _reach(self, item: Convolution | Pool, source: Value, layout: Layout) -> None:
        """Widen the source's border to what the windows of a tile read."""
        dilation = item.dilation if isinstance(item, Convolution) else (1, 1, 1)
        ends = [
            (tile - 1) * step + (window - 1) * spread + 1 - pad - own
            for tile, step, window, spread, pad, own in zip(
                layout.tile, item.stride, item.kernel, dilation, item.padding, source.layout.tile, strict=True
            )
        ]
        after = (max(ends[0], 0), max(ends[1], 0), max(ends[2], 0))
        source.layout = source.layout.wider(item.padding, after)
        source.bordered |= any(item.padding) or any(window > 1 for window in item.kernel)

    def _emit(self) -> None:
        """Lay all kernels' arguments out in one array, and note which of them are addresses."""
        calls = [call for step in self.steps for call in step.calls()]
        self._constants: list[NDArray[Any]] = []
        cells: list[Argument] = [*team.functions(self.threads), len(calls)]
        start = HEAD + STEP * len(calls)
        tail: list[Argument] = []
        for kernel, arguments in calls:
            cells += [native.compiled(kernel.text), Address("plan", 8 * (start + len(tail))), 1]
            tail += [arguments[name] for name in kernel.arguments]
        cells += tail
        self._cells = np.array([self._number(cell) for cell in cells], np.int64)
        known = [(index, cell) for index, cell in enumerate(cells) if isinstance(cell, Address)]
        self._patched = np.array([index for index, _ in known])
        self._bases = np.array([_base(address) for _, address in known])

    def _number(self, cell: Argument) -> int:
        if isinstance(cell, Address):
            return cell.offset
        if isinstance(cell, np.ndarray):
            kept = np.ascontiguousarray(cell)
            self._constants.append(kept)
            return int(kept.ctypes.data)
        return int(cell)

    def run(self, addresses: Sequence[int]) -> None:
        """Compute.

        Args:
            addresses: of the inputs, the outputs and the weights, in this order.
        """
        cells = self._cells.copy()
        memory = _allocate(self.bytes + VECTOR_BYTES)
        start = memory.data_ptr() + -memory.data_ptr() % VECTOR_BYTES
        cells[self._patched] += np.array([cells.ctypes.data, start, *addresses])[self._bases]
        team.run(native.compiled(DRIVE), cells.ctypes.data, self.threads)


def _allocate(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _base(address: Address) -> int:
    return {"plan": 0, "memory": 1}[address.base] if isinstance(address.base, str) else 2 + address.base


def _bare(layout: Layout) -> Layout:
    """The layout without a border."""
    return replace(layout, before=(0, 0, 0), after=(0, 0, 0))


def _places(layout: Layout) -> int:
    depth, height, width = layout.tile
    return depth * height * width


def _follow(source: Layout, channels: int, size: Three, stride: Three) -> Layout | None:
    """The layout in which each lane computes from its own part of the source, if there is one."""
    tile = [size[0]]
    for axis, lanes in ((1, source.split.rows), (2, source.split.columns)):
        whole, rest = divmod(source.tile[axis], stride[axis])
        if lanes == 1:
            whole, rest = size[axis], 0
        if rest or whole * lanes < size[axis]:
            return None
        tile.append(whole)
    return Layout(channels, size, source.split, (tile[0], tile[1], tile[2]))


def _reachable(layout: Layout, source: Three, stride: Three) -> Layout:
    """``layout`` with tiles so large that those of its source hold all of it."""
    tile = [layout.tile[0]]
    for axis, lanes in ((1, layout.split.rows), (2, layout.split.columns)):
        tile.append(max(layout.tile[axis], -(-source[axis] // (lanes * stride[axis]))))
    if layout.split.rows == 1:
        tile[1] = layout.size[1]
    if layout.split.columns == 1:
        tile[2] = layout.size[2]
    return replace(layout, tile=(tile[0], tile[1], tile[2]))


def _needed(layout: Layout, source: Layout, stride: Three) -> Layout:
    """The layout of a source from which each lane computes its part of ``layout``."""
    split = layout.split
    height = source.size[1] if split.rows == 1 else layout.tile[1] * stride[1]
    width = source.size[2] if split.columns == 1 else layout.tile[2] * stride[2]
    return Layout(source.channels, source.size, split, (source.size[0], height, width))
