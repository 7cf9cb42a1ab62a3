"""What the analyses ask of an operation, and the answer for one that is not described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.graph.program import Call, Value

Facts = Mapping[Value, Fact]


class Operation(Protocol):
    """The three rules of an operation; all that the passes know of it."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        """The facts of ``call.outputs``, from those of its inputs."""
        ...

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        """Which elements of each of ``call.inputs`` are read to compute the wanted output elements.

        Both are bool and broadcastable to the values' shapes.
        """
        ...

    def couple(self, call: Call, kept: KeepSets) -> None:
        """Keep what must be kept for the call to compute the same on what is left."""
        ...


class Unknown:
    """An operation the table does not describe: anything may depend on anything, nothing is removed."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        return [unknown(output) for output in call.outputs]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        return [torch.ones_like(facts[value].varies) for value in call.inputs]

    def couple(self, call: Call, kept: KeepSets) -> None:
        for value in (*call.inputs, *call.outputs):
            kept.keep_all(value)


def reduce_to(elements: Tensor, value: Value) -> Tensor:
    """Transpose a broadcast: which elements of an operand are meant by elements of the result.

    Args:
        elements: bool, broadcastable to the result's shape.
        value: the operand, whose shape is aligned with the result's on the right.
    """
    while elements.dim() > len(value.shape):  # each turn drops a dimension
        elements = elements.any(0)
    for dim, size in enumerate(value.shape):
        if size == 1 and elements.shape[dim] > 1:
            elements = elements.any(dim, keepdim=True)
    return elements


def any_over(elements: Tensor, dims: list[int]) -> Tensor:
    """``any`` over some dimensions, each left with size 1."""
    return elements.any(dims, keepdim=True) if dims else elements
