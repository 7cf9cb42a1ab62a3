"""A step of a region, compiled: both passes, and the tensors that they read and write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sparsefx.kernels.codegen.dispatch_loop import DRIVE
from sparsefx.kernels.codegen.vectors import VECTOR_BYTES
from sparsefx.kernels.runtime import native
from sparsefx.kernels.runtime.calls import Calls
from sparsefx.kernels.runtime.threads import run_in_team
from sparsefx.kernels.training.backward import write_backward
from sparsefx.kernels.training.forms import TensorForm
from sparsefx.kernels.training.forward import write_forward
from sparsefx.kernels.training.memory_pool import POOL
from sparsefx.kernels.training.plan import Draft
from sparsefx.kernels.training.program import Combination


@dataclass(frozen=True)
class Pass:
    """One pass.

    Attributes:
        calls: of kernels.
        names: of the tensors, in the order in which the calls know them.
        bytes: of memory that it needs for itself.
        threads: that compute together.
    """

    calls: Calls
    names: tuple[str, ...]
    bytes: int
    threads: int

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Run it on tensors of any shape, by name; each must stay where it is meanwhile."""
        memory = POOL.take(self.bytes + VECTOR_BYTES)
        addresses = np.array([tensors[n].data_ptr() if n in tensors else 0 for n in self.names], np.int64)
        cells = self.calls.at(aligned(memory), addresses)
        run_in_team(native.compiled(DRIVE), cells.ctypes.data, self.threads)
        POOL.give_back(memory)


@dataclass(frozen=True)
class Step:
    """Both passes.

    Attributes:
        forward: the forward pass.
        backward: the backward pass; None where nothing is to be trained.
        kept: bytes that the forward pass leaves to the backward pass.
        outputs: forms of the outputs.
        least: values a channel of the smallest value that the batch normalises; 0 where nothing is.
    """

    forward: Pass
    backward: Pass | None
    kept: int
    outputs: tuple[TensorForm, ...]
    least: int


def aligned(memory: Tensor) -> int:
    """The first address in memory that vectors can be read from."""
    return memory.data_ptr() + -memory.data_ptr() % VECTOR_BYTES


def make_step(
    draft: Draft,
    outputs: tuple[TensorForm, ...],
    gradients: tuple[TensorForm, ...] | None,
    input_gradients: tuple[TensorForm, ...],
) -> Step:
    """Write and compile both passes.

    Args:
        draft: of the step, empty.
        outputs: forms of the tensors that the outputs go to, ``[N, C, *size]`` or ``[N, C]``.
        gradients: forms of their gradients; None for no backward pass.
        input_gradients: forms of the tensors for the gradients of the needed inputs.
    """
    write_forward(draft, outputs)
    forward = _compiled(draft)
    backward = None
    if gradients is not None:
        write_backward(draft, gradients, input_gradients)
        backward = _compiled(draft)
    return Step(forward, backward, draft.kept.bytes, outputs, _least_normalised(draft))


def _least_normalised(draft: Draft) -> int:
    counts = [
        draft.images * math.prod(draft.values[summand.source].size)
        for item in draft.program.instructions
        if isinstance(item, Combination)
        for summand in item.summands
        if summand.normalisation is not None and draft.norms[summand.normalisation.layer].training
    ]
    return min(counts, default=0)


def _compiled(draft: Draft) -> Pass:
    calls = Calls(draft.calls, draft.threads)
    draft.calls = []
    return Pass(calls, tuple(draft.names), draft.scratch.bytes, draft.threads)
