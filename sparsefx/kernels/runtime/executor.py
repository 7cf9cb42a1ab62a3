"""Run a program on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsefx.kernels.codegen.dispatch_loop import DRIVE, EACH, EACH_HEAD
from sparsefx.kernels.codegen.vectors import VECTOR_BYTES
from sparsefx.kernels.ir.program import RegionProgram
from sparsefx.kernels.planner.plan import TensorSpec
from sparsefx.kernels.runtime import native
from sparsefx.kernels.runtime.execution_plan import execution_plan_for
from sparsefx.kernels.runtime.threads import available_threads, run_in_team, team_functions

Cells = NDArray[np.int64]


def execute(
    program: RegionProgram, inputs: Sequence[Tensor], outputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> None:
    """Fill the outputs.

    Args:
        program: what to compute.
        inputs: float32, of the shapes that the program takes, with any strides.
        outputs: float32, contiguous, of the shapes that it gives.
        weights: contiguous, as :mod:`sparsefx.kernels.ir.packed` makes them.
    """
    inputs = [_as_rows(program, tensor) for tensor in inputs]
    specs = tuple(_spec_of(program, tensor) for tensor in inputs)
    plan = execution_plan_for(program, specs, inputs[0].shape[0], available_threads())
    slot_bytes = plan.bytes + -plan.bytes % VECTOR_BYTES
    memory = _allocate(slot_bytes * len(plan.slots) + VECTOR_BYTES)
    start = memory.data_ptr() + -memory.data_ptr() % VECTOR_BYTES
    fixed = np.array([tensor.data_ptr() for tensor in weights], np.int64)
    places = np.array([start, *(tensor.data_ptr() for tensor in (*inputs, *outputs))], np.int64)
    if len(plan.slots) == 1:
        for call in plan.slots[0]:
            cells = call.cells(places, fixed)
            run_in_team(native.compiled(DRIVE), cells.ctypes.data, plan.threads)
        return
    cells_of_slots: list[list[Cells]] = []
    for calls in plan.slots:
        cells_of_slots.append([call.cells(places, fixed) for call in calls])
        places[0] += slot_bytes
    _run_apart(cells_of_slots)


def _run_apart(cells_of_slots: Sequence[Sequence[Cells]]) -> None:
    """Each thread runs lists of its own."""
    slots = len(cells_of_slots)
    number, size, _ = team_functions(slots)
    bounds = np.cumsum([EACH_HEAD + slots + 1, *map(len, cells_of_slots)]).tolist()
    addresses = [cells.ctypes.data for slot in cells_of_slots for cells in slot]
    cells = np.array([number, size, native.compiled(DRIVE), slots, *bounds, *addresses], np.int64)
    run_in_team(native.compiled(EACH), cells.ctypes.data, slots)


def _allocate(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def _as_rows(program: RegionProgram, tensor: Tensor) -> Tensor:
    """Images as they are; rows in two dimensions."""
    return tensor if program.dims else tensor.reshape(-1, tensor.shape[-1])


def _spec_of(program: RegionProgram, tensor: Tensor) -> TensorSpec:
    if not program.dims:
        return TensorSpec(tensor.shape[1], (1, 1, 1), (0, 0, 0, tensor.stride(0)), tensor.stride(1))
    missing = 5 - tensor.dim()
    depth, height, width = (*([1] * missing), *tensor.shape[2:])
    planes, rows, columns = (*([0] * missing), *tensor.stride()[2:])
    steps = (tensor.stride(0), planes, rows, columns)
    return TensorSpec(tensor.shape[1], (depth, height, width), steps, tensor.stride(1))
