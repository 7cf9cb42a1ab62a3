"""A program for given sizes: layouts, steps and the memory that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sparsefx.kernels.ir.packed import are_short
from sparsefx.kernels.ir.program import (
    DHW,
    Concatenate,
    Convolution,
    Instruction,
    Mean,
    Pointwise,
    Pool,
    RegionProgram,
)
from sparsefx.kernels.planner.lanes import Layout, Split, split_for
from sparsefx.kernels.planner.memory import place
from sparsefx.kernels.planner.moves import ConvertLayout, FillBorder, OutsideTensor, PackLanes, UnpackLanes
from sparsefx.kernels.planner.steps import (
    Address,
    Compute,
    Convolve,
    Copy,
    LaneValue,
    MeanOfImage,
    PoolWindows,
    Step,
)
from sparsefx.kernels.planner.tiling import choose_tiling
from sparsefx.kernels.planner.windows import reach, slide

_BARRIER = 3000  # cycles


@dataclass(frozen=True)
class TensorSpec:
    """What a plan is made for, of each input and output.

    Attributes:
        channels: their number.
        size: depth, height and width.
        steps: elements from one image, plane, row and column to the next.
        channel: elements from one channel to the next.
    """

    channels: int
    size: DHW
    steps: tuple[int, int, int, int]
    channel: int


def channels_last(channels: int, size: DHW) -> TensorSpec:
    """A tensor ``[N, *size, C]``; rows, too."""
    depth, height, width = size
    row = width * channels
    return TensorSpec(channels, size, (depth * height * row, height * row, row, channels), 1)


def contiguous(dims: int, channels: int, size: DHW) -> TensorSpec:
    """A tensor ``[N, C, *size]``, or ``[rows, C]`` where ``dims`` is 0."""
    if dims == 0:
        return TensorSpec(channels, size, (0, 0, 0, channels), 1)
    depth, height, width = size
    plane = depth * height * width
    return TensorSpec(channels, size, (channels * plane, height * width, width, 1), plane)


class Plan:
    """Steps in lanes for so many images.

    Args:
        program: what to compute.
        inputs: of the program.
        outputs: of the program.
        images: at once; 1 for rows, whose number is the width.
        threads: that compute it together.

    Attributes:
        steps: in order, with a place in memory for every value.
        bytes: of memory that it needs.
    """

    def __init__(
        self,
        program: RegionProgram,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        images: int,
        threads: int,
    ) -> None:
        self.program, self.images, self.threads = program, images, threads
        self.steps: list[Step] = []
        self._values: list[LaneValue] = []
        for index, item in enumerate(inputs):
            self._values.append(self._packed(index, item))
        self._step_ranges: list[tuple[int, int]] = []
        for instruction in program.instructions:
            before = len(self.steps)
            self._values.append(self._instruction(instruction))
            self._step_ranges.append((before, len(self.steps)))
        for index, (output, spec) in enumerate(zip(program.outputs, outputs, strict=True)):
            target = OutsideTensor(Address(len(inputs) + index), images, spec.steps, spec.channel)
            self.steps.append(UnpackLanes(self._values[output], target))
        self.bytes = place(self.steps)

    @cached_property
    def costs(self) -> list[float]:
        """Cycles that each instruction takes, about."""
        waiting = _BARRIER if self.threads > 1 else 0
        groups = [self.steps[first:end] for first, end in self._step_ranges]
        return [sum(step.cost / self.threads + waiting for step in steps) for steps in groups]

    def _packed(self, index: int, spec: TensorSpec) -> LaneValue:
        layout = Layout.of(spec.channels, spec.size, split_for(self.images, spec.size))
        value = LaneValue(layout, bordered=True)
        source = OutsideTensor(Address(index), self.images, spec.steps, spec.channel)
        self.steps.append(PackLanes(source, value))
        return value

    def _instruction(self, item: Instruction) -> LaneValue:
        source = self._values[item.source]
        if isinstance(item, Mean):
            return self._mean(source)
        if isinstance(item, Pointwise):
            return self._pointwise(item, source)
        if isinstance(item, Concatenate):
            return self._concatenate(item, source)
        if isinstance(item, Pool):
            return self._pool(item, source)
        return self._convolution(item, source)

    def _mean(self, source: LaneValue) -> LaneValue:
        source.bordered = True
        layout = Layout(source.layout.channels, (1, 1, 1), source.layout.split, (1, 1, 1))
        return self._add(MeanOfImage(source, LaneValue(layout, source.nonnegative)))

    def _pool(self, item: Pool, source: LaneValue) -> LaneValue:
        source, layout = self._slide(item, source, source.layout.channels)
        if item.largest and (any(item.padding) or item.ceil) and not source.nonnegative:
            copy = LaneValue(source.layout, outside=-np.inf)
            self.steps.append(ConvertLayout(source, copy))
            source = copy
        self._reach(item, source, layout)
        return self._add(PoolWindows(item, source, LaneValue(layout, source.nonnegative)))

    def _convolution(self, item: Convolution, source: LaneValue) -> LaneValue:
        source, layout = self._slide(item, source, item.out_channels)
        self._reach(item, source, layout)
        residual = None if item.residual is None else self._in_layout(self._values[item.residual], layout)
        value = LaneValue(layout, min(item.bounds) >= 0)
        tiling = choose_tiling(item, layout.tile, source.layout.pitch)
        return self._add(Convolve(item, self._weights(item), source, value, residual, tiling, self.threads))

    def _pointwise(self, item: Pointwise, source: LaneValue) -> LaneValue:
        operand = None if item.other is None else self._values[item.other]
        if operand is not None and operand.layout.size != source.layout.size:
            operand = self._spread(operand, source.layout.split)
        elif operand is not None:
            operand = self._in_layout(operand, source.layout)
        factors = None
        if item.weights is not None and item.channels is not None:
            ends = item.weights, item.weights + item.channels
            factors = self._weight(2, 4 * ends[0]), self._weight(2, 4 * ends[1])
        value = LaneValue(source.layout.bare, min(item.bounds) >= 0)
        return self._add(Compute(item, factors, source, operand, value))

    def _spread(self, value: LaneValue, split: Split) -> LaneValue:
        """A copy of a value of one element a channel, in every lane of its image."""
        layout = Layout(value.layout.channels, (1, 1, 1), split, (1, 1, 1))
        return self._add(ConvertLayout(value, LaneValue(layout, value.nonnegative), everywhere=True))

    def _concatenate(self, item: Concatenate, first: LaneValue) -> LaneValue:
        sources = [self._in_layout(self._values[index], first.layout) for index in item.sources]
        channels = sum(source.layout.channels for source in sources)
        layout = replace(first.layout.bare, channels=channels)
        value = LaneValue(layout, all(source.nonnegative for source in sources))
        start = 0
        for source in sources:
            self.steps.append(Copy(source, value, start))
            start += source.layout.channels
        self.steps.append(FillBorder(value))
        return value

    def _weights(self, item: Convolution) -> tuple[Address, ...]:
        """Rows, codes, values and bias."""
        row, code, value = item.weights
        codes = self._weight(1, 2 * code) if are_short(item.codes) else self._weight(0, 4 * code)
        bias = self._weight(2, 4 * (value + item.nonzeros))
        return self._weight(0, 4 * row), codes, self._weight(2, 4 * value), bias

    def _weight(self, tensor: int, offset: int) -> Address:
        """Bytes from the beginning of one of the region's three tensors."""
        return Address(self.program.inputs + len(self.program.outputs) + tensor, offset)

    def _add(self, step: Step) -> LaneValue:
        value = step.writes
        assert value is not None
        self.steps += [step, FillBorder(value)]
        return value

    def _slide(self, item: Convolution | Pool, source: LaneValue, channels: int) -> tuple[LaneValue, Layout]:
        """The source as the windows need it, and the result's layout."""
        needed, result = slide(item, source.layout, channels, self.images)
        return self._in_layout(source, needed), result

    def _in_layout(self, value: LaneValue, layout: Layout) -> LaneValue:
        """The value, or a copy, whose tiles are as in ``layout``."""
        if (value.layout.split, value.layout.tile) == (layout.split, layout.tile):
            return value
        copy = LaneValue(replace(layout.bare, channels=value.layout.channels), value.nonnegative)
        self.steps.append(ConvertLayout(value, copy))
        return copy

    def _reach(self, item: Convolution | Pool, source: LaneValue, layout: Layout) -> None:
        """Widen the source's border to what the windows of a tile read."""
        source.layout = source.layout.wider(item.padding, reach(item, source.layout, layout))
        source.bordered |= any(item.padding) or any(window > 1 for window in item.kernel)
