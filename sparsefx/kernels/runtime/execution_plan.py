"""What is computed for a batch of given size, from its schedule: plans, and where their tensors are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparsefx.kernels.codegen.vectors import VECTOR_BYTES
from sparsefx.kernels.ir.program import Program
from sparsefx.kernels.ir.shapes import Shape, of_values
from sparsefx.kernels.planner.plan import Given, Plan, channels_last, contiguous
from sparsefx.kernels.planner.schedule import Schedule, plan_for, schedule_for
from sparsefx.kernels.planner.sections import Section
from sparsefx.kernels.runtime.byte_bounded_cache import Kept
from sparsefx.kernels.runtime.calls import Calls


@dataclass(frozen=True)
class Turn:
    """A plan, run once.

    Attributes:
        calls: of the plan's kernels.
        bases: for each of its inputs and outputs, what it lies in: 0 is memory, then come the tensors.
        offsets: bytes from there.
    """

    calls: Calls
    bases: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def cells(self, places: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
        """Its kernels and their arguments, given the addresses of memory and the tensors."""
        return self.calls.at(places[0], np.concatenate([places[self.bases] + self.offsets, weights]))


@dataclass(frozen=True)
class Course:
    """All turns.

    Attributes:
        slots: turns one after the other: a list for each thread that computes apart, or one for all.
        threads: that compute a turn together.
        bytes: of memory for each slot.
    """

    slots: tuple[tuple[Turn, ...], ...]
    threads: int
    bytes: int

    @property
    def tables(self) -> int:
        """Bytes of what its kernels read besides values and weights."""
        every = {id(turn.calls): turn.calls for turns in self.slots for turn in turns}
        return sum(calls.bytes for calls in every.values())


def _course_for(program: Program, given: tuple[Given, ...], total: int, threads: int) -> Course:
    """What is computed.

    Values that one stage makes and a later one reads are in memory, after what the plans need themselves.

    Args:
        program: what to compute.
        given: its inputs.
        total: images, or rows.
        threads: that there are.
    """
    schedule = schedule_for(program, given, total, threads)
    together = 1 if schedule.apart else threads
    values = _Values(program, schedule, given)
    starts = range(0, total, schedule.part)
    parts = [
        list(_plans(schedule, values, start, min(schedule.part, total - start), together)) for start in starts
    ]
    arena = max(plan.bytes for part in parts for _, _, _, plan in part)
    arena += -arena % VECTOR_BYTES
    turns = [
        tuple(values.turn(section, start, first, plan, arena) for section, start, first, plan in part)
        for part in parts
    ]
    slots = min(threads, len(parts)) if schedule.apart else 1
    shared = tuple(tuple(turn for part in turns[slot::slots] for turn in part) for slot in range(slots))
    return Course(shared, together, arena + values.bytes)


course_for = Kept(_course_for, lambda course: course.tables, most=2**28)


def _plans(
    schedule: Schedule, values: _Values, start: int, count: int, threads: int
) -> Iterator[tuple[Section, int, int, Plan]]:
    """Each section's plans, with the first image of the part and the plan's first one in the part."""
    for stage in schedule.stages:
        given, results = (
            tuple(values.given[value] for value in listed)
            for listed in (stage.section.reads, stage.section.writes)
        )
        for first in range(0, count, stage.size):
            size = min(stage.size, count - first)
            yield stage.section, start, first, plan_for(stage.section.program, given, results, size, threads)


@lru_cache(maxsize=64)
def _calls_of(plan: Plan) -> Calls:
    """A plan's kernels; they are compiled where they are not known yet."""
    return Calls((call for step in plan.steps for call in step.calls()), plan.threads)


class _Values:
    """Where the values of a program are that are not in lanes."""

    def __init__(self, program: Program, schedule: Schedule, given: tuple[Given, ...]) -> None:
        self._program = program
        shapes = of_values(program, [Shape(item.channels, item.size) for item in given])
        results = [
            contiguous(program.dims, *shape) if value in program.outputs else channels_last(*shape)
            for value, shape in enumerate(shapes[len(given) :], len(given))
        ]
        self.given = [*given, *results]
        self.bytes = 0
        self._starts: dict[int, int] = {}
        written = {value for stage in schedule.stages for value in stage.section.writes}
        for value in sorted(written - set(program.outputs)):
            self._starts[value] = self.bytes
            self.bytes += 4 * schedule.part * shapes[value].channels * math.prod(shapes[value].size)

    def turn(self, section: Section, start: int, first: int, plan: Plan, arena: int) -> Turn:
        """A plan's turn for the images from ``start + first`` on."""
        found = []
        for value in (*section.reads, *section.writes):
            step = 4 * self.given[value].steps[0 if self._program.dims else 3]
            if value in self._starts:
                found.append((0, arena + self._starts[value] + step * first))
            elif value < self._program.inputs:
                found.append((1 + value, step * (start + first)))
            else:
                base = 1 + self._program.inputs + self._program.outputs.index(value)
                found.append((base, step * (start + first)))
        bases, offsets = np.array(found, np.int64).T
        return Turn(_calls_of(plan), bases, offsets)
