"""Run a program on tensors: a plan for their sizes, again and again over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from sparsefx.kernels import team
from sparsefx.kernels.plan import IMAGES, ROWS, Given, Plan
from sparsefx.kernels.program import Program, read_program


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
    given = tuple(_given(program, tensor) for tensor in inputs)
    total, most = inputs[0].shape[0], IMAGES if program.dims else ROWS
    fixed = [tensor.data_ptr() for tensor in weights]
    for start in range(0, total, most):
        plan = _plan(text, given, min(most, total - start), threads)
        moving = [t.data_ptr() + t.element_size() * t.stride(0) * start for t in (*inputs, *outputs)]
        plan.run([*moving, *fixed])


def _as_rows(program: Program, tensor: Tensor) -> Tensor:
    """Images as they are; rows in two dimensions."""
    return tensor if program.dims else tensor.reshape(-1, tensor.shape[-1])


@lru_cache(maxsize=64)
def _plan(text: str, given: tuple[Given, ...], count: int, threads: int) -> Plan:
    program = read_program(text)
    if not program.dims:
        given = tuple(Given(item.channels, (1, 1, count), item.steps, item.channel) for item in given)
    return Plan(program, given, count, threads)


def _given(program: Program, tensor: Tensor) -> Given:
    if not program.dims:
        return Given(tensor.shape[1], (1, 1, 0), (0, 0, 0, tensor.stride(0)), tensor.stride(1))
    missing = 3 - program.dims
    depth, height, width = (*([1] * missing), *tensor.shape[2:])
    planes, rows, columns = (*([0] * missing), *tensor.stride()[2:])
    steps = (tensor.stride(0), planes, rows, columns)
    return Given(tensor.shape[1], (depth, height, width), steps, tensor.stride(1))
