"""How a batch is divided: into parts, and each section of the program into as many images as suit its layers.

Layers on large images are fastest a few images at a time, whose values stay in the caches; those on small
images many at a time, which read the weights together. What both cost is known by the plans' models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from sparsefx.errors import ArgumentError
from sparsefx.kernels.codegen.vectors import LANES
from sparsefx.kernels.ir.program import RegionProgram
from sparsefx.kernels.ir.shapes import Shape, of_values
from sparsefx.kernels.planner.plan import Plan, TensorSpec, contiguous
from sparsefx.kernels.planner.sections import Section, live, section

_MOST_ROWS = 16 * LANES
_MOVE = 1.5  # cycles to move an element out of the lanes, or into them
_SECTION = 20000.0  # cycles for a section besides

_MOST_APART = 2**31 - 1  # elements from the first to the last that a plan moves: distances have 32 bits
_MOST_IN_LANES = 2**28  # elements of a channel; its distances are in bytes, and there are borders


@dataclass(frozen=True)
class Stage:
    """A section of the program.

    Attributes:
        section: what it computes.
        size: images, or rows of linear layers, at once.
    """

    section: Section
    size: int


@dataclass(frozen=True)
class Schedule:
    """How a batch is divided.

    Attributes:
        part_size: images, or rows, that go through all stages before the next do.
        apart: whether each thread computes parts of its own, instead of all together one after the other.
        stages: sections of the program, in order.
    """

    part_size: int
    apart: bool
    stages: tuple[Stage, ...]


def schedule_for(
    program: RegionProgram, inputs: tuple[TensorSpec, ...], total: int, threads: int
) -> Schedule:
    """The schedule that takes the least time, by the plans' costs.

    Args:
        program: what to compute.
        inputs: shape and layout of each input of the program.
        total: images, or rows.
        threads: that there are.

    Raises:
        ArgumentError: an image is too large.
    """
    sizes = [size for size in _sizes(program, total) if _fits(program, inputs, size)]
    if not sizes:
        raise ArgumentError(
            f"an input of {inputs[0].channels} channels of {inputs[0].size} is too large for sparse kernels, "
            "which tell places by 32 bits; export with kernels='dense'"
        )
    choices = []
    for part_size, apart in itertools.product(sizes, {False, threads > 1}):
        cycles, chosen = _choose(program, inputs, part_size, sizes, 1 if apart else threads)
        rounds = math.ceil(math.ceil(total / part_size) / (threads if apart else 1))
        choices.append((cycles * rounds, part_size, apart, chosen))
    _, part_size, apart, chosen = min(choices)
    return Schedule(part_size, apart, _stages(program, chosen))


def _sizes(program: RegionProgram, total: int) -> list[int]:
    least, most = (1, LANES) if program.dims else (LANES, _MOST_ROWS)
    return [1 << n for n in range(9) if least <= 1 << n <= most and (1 << n < 2 * total or 1 << n == least)]


def _fits(program: RegionProgram, inputs: tuple[TensorSpec, ...], size: int) -> bool:
    """Whether 32 bits tell all distances within so many images or rows."""
    shapes = of_values(program, [Shape(item.channels, item.size) for item in inputs])
    made = [contiguous(program.dims, *shape) for shape in shapes[len(inputs) :]]
    for item in (*inputs, *made):
        lengths = (size, *item.size) if program.dims else (1, 1, 1, size)
        apart = sum(step * (length - 1) for step, length in zip(item.steps, lengths, strict=True))
        if apart > _MOST_APART or math.prod(lengths) > _MOST_IN_LANES:
            return False
    return True


def _choose(
    program: RegionProgram, inputs: tuple[TensorSpec, ...], part_size: int, sizes: Sequence[int], threads: int
) -> tuple[float, tuple[int, ...]]:
    """Cycles for a part of the batch, and each instruction's size: the shortest way through all of them."""
    shapes = of_values(program, [Shape(item.channels, item.size) for item in inputs])
    outputs = tuple(contiguous(program.dims, *shapes[output]) for output in program.outputs)
    costs = {s: plan_for(program, inputs, outputs, s, threads).costs for s in sizes if s <= part_size}
    ways: dict[int, tuple[float, tuple[int, ...]]] = dict.fromkeys(costs, (0.0, ()))
    for index in range(len(program.instructions)):
        cycles, chosen = min(ways.values())
        change = cycles + _change(program, shapes, index, part_size) / threads, chosen
        for size, way in ways.items():
            cycles, chosen = min(way, change)
            ways[size] = cycles + part_size / size * costs[size][index], (*chosen, size)
    return min(ways.values())


def _change(program: RegionProgram, shapes: Sequence[Shape], index: int, part_size: int) -> float:
    """Cycles for another size from an instruction on: what is still needed leaves the lanes and enters."""
    kept = [value for value in live(program, index) if program.inputs <= value < program.inputs + index]
    elements: int = sum(shapes[value].channels * math.prod(shapes[value].size) for value in kept)
    return _SECTION + _MOVE * part_size * elements


def _stages(program: RegionProgram, sizes: Sequence[int]) -> tuple[Stage, ...]:
    """Sections of instructions with the same size."""
    stages = []
    first = 0
    for size, same in itertools.groupby(sizes):
        last = first + len(list(same))
        stages.append(Stage(section(program, first, last), size))
        first = last
    return tuple(stages)


@lru_cache(maxsize=64)
def plan_for(
    program: RegionProgram,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    count: int,
    threads: int,
) -> Plan:
    """The plan of a program for so many images or rows, given the shapes of its inputs and outputs."""
    if program.dims:
        return Plan(program, inputs, outputs, count, threads)
    rows = tuple(replace(item, size=(1, 1, count)) for item in inputs)
    return Plan(program, rows, outputs, 1, threads)
