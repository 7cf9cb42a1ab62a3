"""Carry facts through a recorded graph: forward what varies, backward what some output reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, constant, first_along, uniform_dims, unknown
from sparsefx.passes.analysis.ops import holds_for_computed_sizes, operation_of
from sparsefx.passes.graph.program import Program, Value


def forward_facts(program: Program) -> dict[Value, Fact]:
    """Run the program on what is known instead of on numbers.

    Each operation's own rule (:mod:`sparsefx.passes.analysis.ops`) carries facts from operands to results.
    """
    facts: dict[Value, Fact] = {}
    for value in program.constants:
        assert value.constant is not None
        facts[value] = constant(value.constant) if value.shape.numel() else unknown(value)
    for value in program.inputs:
        facts[value] = unknown(value)
    for call in program.calls:
        results = operation_of(call).forward(call, facts)
        if call.opaque or (call.computed and not holds_for_computed_sizes(call)):
            results = [unknown(output) for output in call.outputs]
        for output, result in zip(call.outputs, results, strict=True):
            # of no elements at all nothing is known: another call may have some
            facts[output] = _of_dtype(result if output.shape.numel() else unknown(output), output.dtype)
    return facts


def _of_dtype(known: Fact, dtype: torch.dtype) -> Fact:
    """A fact whose value has the type that the operation really returns (a sum of bools is an integer)."""
    return known if known.value.dtype is dtype else replace(known, value=known.value.to(dtype))


def live_elements(program: Program, facts: Mapping[Value, Fact]) -> dict[Value, Tensor]:
    """For each value, which elements some output of the graph reads, directly or through others.

    Computed backwards, each operation's rule transposed. A factor is not read where the other one
    is a zero of the parameters.

    Returns:
        Bool tensors, broadcastable to the values' shapes.
    """
    live = {value: torch.zeros_like(facts[value].varies) for value in facts}
    for value in program.outputs:
        live[value] = torch.ones_like(live[value])
    for call in reversed(program.calls):
        for output in call.outputs:
            live[output] = first_along(live[output], uniform_dims(live[output]))
        wanted = [live[output] for output in call.outputs]
        reads = operation_of(call).backward(call, facts, wanted)
        for value, read in zip(call.inputs, reads, strict=True):
            live[value] = live[value] | (read if value.shape.numel() else True)
    return live
