"""What is computed for a batch of given size, from its schedule: plans, and where their tensors are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparsefx.kernels.codegen.vectors import VECTOR_BYTES
from sparsefx.kernels.ir.program import RegionProgram
from sparsefx.kernels.ir.shapes import Shape, of_values
from sparsefx.kernels.planner.plan import Plan, TensorSpec, channels_last, contiguous
from sparsefx.kernels.planner.schedule import Schedule, plan_for, schedule_for
from sparsefx.kernels.planner.sections import Section
from sparsefx.kernels.runtime.byte_bounded_cache import ByteBoundedCache
from sparsefx.kernels.runtime.calls import Calls


@dataclass(frozen=True)
class PlanCall:
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
class ExecutionPlan:
    """All calls of plans.

    Attributes:
        slots: calls one after the other: a list for each thread that computes apart, or one for all.
        threads: that compute a call together.
        bytes: of memory for each slot.
    """

    slots: tuple[tuple[PlanCall, ...], ...]
    threads: int
    bytes: int

    @property
    def tables(self) -> int:
        """Bytes of what its kernels read besides values and weights."""
        every = {id(call.calls): call.calls for slot in self.slots for call in slot}
        return sum(calls.bytes for calls in every.values())


def _execution_plan_for(
    program: RegionProgram, inputs: tuple[TensorSpec, ...], total: int, threads: int
) -> ExecutionPlan:
    """What is computed.

    Values that one stage makes and a later one reads are in memory, after what the plans need themselves.

    Args:
        program: what to compute.
        inputs: of the program.
        total: images, or rows.
        threads: that there are.
    """
    schedule = schedule_for(program, inputs, total, threads)
    together = 1 if schedule.apart else threads
    values = _Values(program, schedule, inputs)
    starts = range(0, total, schedule.part_size)
    parts = [
        list(_plans(schedule, values, start, min(schedule.part_size, total - start), together))
        for start in starts
    ]
    arena = max(plan.bytes for plans in parts for _, _, _, plan in plans)
    arena += -arena % VECTOR_BYTES
    calls = [
        tuple(values.plan_call(section, start, first, plan, arena) for section, start, first, plan in plans)
        for plans in parts
    ]
    slots = min(threads, len(parts)) if schedule.apart else 1
    shared = tuple(tuple(itertools.chain(*calls[slot::slots])) for slot in range(slots))
    return ExecutionPlan(shared, together, arena + values.bytes)


execution_plan_for = ByteBoundedCache(_execution_plan_for, lambda plan: plan.tables, most=2**28)


def _plans(
    schedule: Schedule, values: _Values, start: int, count: int, threads: int
) -> Iterator[tuple[Section, int, int, Plan]]:
    """Each section's plans, with the first image of the part and the plan's first one in the part."""
    for stage in schedule.stages:
        inputs, outputs = (
            tuple(values.specs[value] for value in listed)
            for listed in (stage.section.reads, stage.section.writes)
        )
        for first in range(0, count, stage.size):
            size = min(stage.size, count - first)
            yield stage.section, start, first, plan_for(stage.section.program, inputs, outputs, size, threads)


@lru_cache(maxsize=64)
def _calls_of(plan: Plan) -> Calls:
    """A plan's kernels; they are compiled where they are not known yet."""
    return Calls((call for step in plan.steps for call in step.calls()), plan.threads)


class _Values:
    """Where the values of a program are that are not in lanes."""

    def __init__(self, program: RegionProgram, schedule: Schedule, inputs: tuple[TensorSpec, ...]) -> None:
        self._program = program
        shapes = of_values(program, [Shape(item.channels, item.size) for item in inputs])
        made = [
            contiguous(program.dims, *shape) if value in program.outputs else channels_last(*shape)
            for value, shape in enumerate(shapes[len(inputs) :], len(inputs))
        ]
        self.specs = [*inputs, *made]
        self.bytes = 0
        self._starts: dict[int, int] = {}
        written = {value for stage in schedule.stages for value in stage.section.writes}
        for value in sorted(written - set(program.outputs)):
            self._starts[value] = self.bytes
            self.bytes += 4 * schedule.part_size * shapes[value].channels * math.prod(shapes[value].size)

    def plan_call(self, section: Section, start: int, first: int, plan: Plan, arena: int) -> PlanCall:
        """A plan's call for the images from ``start + first`` on."""
        places = []
        for value in (*section.reads, *section.writes):
            step = 4 * self.specs[value].steps[0 if self._program.dims else 3]
            if value in self._starts:
                places.append((0, arena + self._starts[value] + step * first))
            elif value < self._program.inputs:
                places.append((1 + value, step * (start + first)))
            else:
                base = 1 + self._program.inputs + self._program.outputs.index(value)
                places.append((base, step * (start + first)))
        bases, offsets = np.array(places, np.int64).T
        return PlanCall(_calls_of(plan), bases, offsets)
