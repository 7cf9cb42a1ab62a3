"""Run a program on tensors, as a schedule says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsefx.kernels import native, team
from sparsefx.kernels.code import VECTOR_BYTES
from sparsefx.kernels.code.driving import DRIVE, EACH, EACH_HEAD
from sparsefx.kernels.plan import Given, Plan, channels_last, contiguous
from sparsefx.kernels.program import Program, read_program
from sparsefx.kernels.schedule import Schedule, plan_for, schedule_for
from sparsefx.kernels.sections import Section
from sparsefx.kernels.shapes import Shape, of_values

Cells = NDArray[np.int64]


def run(text: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Fill the outputs.

    Args:
        text: the program.
        inputs: float32, of the shapes that the program takes, with any strides.
        outputs: float32, contiguous, of the shapes that it gives.
        weights: contiguous, as :mod:`sparsefx.kernels.packed` makes them.
    """
    program, threads = read_program(text), team.size()
    inputs, outputs = ([_as_rows(program, tensor) for tensor in tensors] for tensors in (inputs, outputs))
    total = inputs[0].shape[0]
    given = tuple(_given(program, tensor) for tensor in inputs)
    schedule = schedule_for(text, given, total, threads)
    parts = [(start, min(schedule.part, total - start)) for start in range(0, total, schedule.part)]
    slots = min(threads, len(parts)) if schedule.apart else 1
    together = 1 if schedule.apart else threads
    course = _Course(program, schedule, given, together, [weight.data_ptr() for weight in weights])
    memory = _Memory(max(course.bytes(count) for _, count in parts), slots)
    tensors = dict(enumerate(inputs)) | dict(zip(program.outputs, outputs, strict=True))
    calls: list[list[Cells]] = [[] for _ in range(slots)]
    for index, (start, count) in enumerate(parts):
        slot = index % slots
        calls[slot] += course.calls({n: t[start:] for n, t in tensors.items()}, count, memory.start(slot))
    if slots > 1:
        _run_apart(calls)
    else:
        for cells in calls[0]:
            team.run(native.compiled(DRIVE), cells.ctypes.data, together)


def _run_apart(calls: Sequence[Sequence[Cells]]) -> None:
    """Each thread runs lists of its own."""
    slots = len(calls)
    number, size, _ = team.functions(slots)
    bounds = np.cumsum([EACH_HEAD + slots + 1, *map(len, calls)]).tolist()
    addresses = [cells.ctypes.data for listed in calls for cells in listed]
    cells = np.array([number, size, native.compiled(DRIVE), slots, *bounds, *addresses], np.int64)
    team.run(native.compiled(EACH), cells.ctypes.data, slots)


class _Course:
    """The way of a part of the batch through all stages.

    Values that one stage makes and a later one reads are tensors in memory, after the plans' own.
    """

    def __init__(
        self,
        program: Program,
        schedule: Schedule,
        given: tuple[Given, ...],
        threads: int,
        weights: list[int],
    ) -> None:
        self._schedule, self._threads, self._weights = schedule, threads, weights
        shapes = of_values(program, [Shape(item.channels, item.size) for item in given])
        results = [
            contiguous(program.dims, *shape) if value in program.outputs else channels_last(*shape)
            for value, shape in enumerate(shapes[len(given) :], len(given))
        ]
        self._given = [*given, *results]
        self._own: dict[int, tuple[int, int]] = {}  # where a value is, and its bytes for each image
        self._own_bytes = 0
        written = {value for stage in schedule.stages for value in stage.section.writes}
        for value in sorted(written - set(program.outputs)):
            step = 4 * shapes[value].channels * math.prod(shapes[value].size)
            self._own[value] = self._own_bytes, step
            self._own_bytes += step * schedule.part

    def bytes(self, count: int) -> int:
        """Of memory for so many images."""
        return self._arena(count) + self._own_bytes

    def calls(self, tensors: Mapping[int, Tensor], count: int, memory: int) -> Iterator[Cells]:
        """Lists of kernels, one after the other.

        Args:
            tensors: the inputs and the outputs, from the part's first image on.
            count: images of this part.
            memory: an address.
        """
        after = memory + self._arena(count)
        for section, first, plan in self._plans(count):
            addresses = []
            for value in (*section.reads, *section.writes):
                if value in tensors:
                    tensor = tensors[value]
                    addresses.append(tensor.data_ptr() + first * tensor.stride(0) * tensor.element_size())
                else:
                    start, step = self._own[value]
                    addresses.append(after + start + first * step)
            yield plan.calls.at(memory, [*addresses, *self._weights])

    def _plans(self, count: int) -> Iterator[tuple[Section, int, Plan]]:
        """Each section's plans, with their first image."""
        for stage in self._schedule.stages:
            given, results = (
                tuple(self._given[value] for value in values)
                for values in (stage.section.reads, stage.section.writes)
            )
            for first in range(0, count, stage.size):
                size = min(stage.size, count - first)
                yield stage.section, first, plan_for(stage.section.text, given, results, size, self._threads)

    def _arena(self, count: int) -> int:
        size = max(plan.bytes for _, _, plan in self._plans(count))
        return size + -size % VECTOR_BYTES


class _Memory:
    """Aligned memory for each slot."""

    def __init__(self, size: int, slots: int) -> None:
        self._step = size + -size % VECTOR_BYTES
        self._tensor = _allocate(self._step * slots + VECTOR_BYTES)
        self._first = self._tensor.data_ptr() + -self._tensor.data_ptr() % VECTOR_BYTES

    def start(self, slot: int) -> int:
        """The address of a slot's memory."""
        return self._first + slot * self._step


def _allocate(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _as_rows(program: Program, tensor: Tensor) -> Tensor:
    """Images as they are; rows in two dimensions."""
    return tensor if program.dims else tensor.reshape(-1, tensor.shape[-1])


def _given(program: Program, tensor: Tensor) -> Given:
    if not program.dims:
        return Given(tensor.shape[1], (1, 1, 1), (0, 0, 0, tensor.stride(0)), tensor.stride(1))
    missing = 3 - program.dims
    depth, height, width = (*([1] * missing), *tensor.shape[2:])
    planes, rows, columns = (*([0] * missing), *tensor.stride()[2:])
    steps = (tensor.stride(0), planes, rows, columns)
    return Given(tensor.shape[1], (depth, height, width), steps, tensor.stride(1))
