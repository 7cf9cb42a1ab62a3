"""Elementwise operations, with broadcasting: activations, arithmetic, comparisons, casts, copies."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts, reduce_to
from sparsefx.passes.graph.program import Call, Value
from sparsefx.passes.running.broadcast import broadcast_shapes


class Elementwise:
    """Each element of the result reads the operands' elements at its place."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        operands = [facts[value] for value in call.inputs]
        shape = broadcast_shapes(*(operand.value.shape for operand in operands))
        # not every kernel broadcasts its first operand; of a scalar, torch wants to see that it is one
        values = [f.value.expand(shape) if f.value.dim() == len(shape) else f.value for f in operands]
        (value,) = call.run(values)
        varies, fixed = torch.zeros((), dtype=torch.bool), torch.ones((), dtype=torch.bool)
        for operand in operands:
            varies, fixed = varies | operand.varies, fixed & operand.fixed
        return [fact(varies.expand(value.shape), value, fixed.expand(value.shape))]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        return [reduce_to(wanted[0], value) for value in call.inputs]

    def couple(self, call: Call, kept: KeepSets) -> None:
        (output,) = call.outputs
        for value in call.inputs:
            tie_broadcast(kept, value, output)


class Multiply(Elementwise):
    """A product: constantly 0 where either factor is, and a factor is not read where the other is 0."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        (product,) = super().forward(call, facts)
        zero, fixed = torch.zeros((), dtype=torch.bool), product.fixed
        for value in call.inputs:
            zero = zero | (~facts[value].varies & (facts[value].value == 0))
            fixed = fixed | ~facts[value].may_be_nonzero
        return [fact(product.varies & ~zero, product.value.where(~zero, 0), fixed)]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        if len(call.inputs) != 2:
            return super().backward(call, facts, wanted)
        one, other = call.inputs
        read = wanted[0] & facts[one].may_be_nonzero & facts[other].may_be_nonzero
        return [reduce_to(read, one), reduce_to(read, other)]


class Copy(Elementwise):
    """The same numbers, perhaps in another type."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        (copied,) = super().forward(call, facts)
        return [replace(copied, averages=facts[call.inputs[0]].averages)]


class Restride(Elementwise):
    """``as_strided`` to the same shape, which pooling uses to set a memory format."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        return [facts[call.inputs[0]]]

    @staticmethod
    def describes(call: Call) -> bool:
        """Whether every element surely stays where it is: only one position is left of the map."""
        (source,), (result,) = call.inputs, call.outputs
        return source.shape == result.shape and source.shape[2:].numel() == 1


class Like(Elementwise):
    """``zeros_like`` and its kin: of the shape of the operand, whose elements are not read."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        (value,) = call.run([facts[value].value for value in call.inputs])
        nothing = torch.zeros((1,) * value.dim(), dtype=torch.bool)
        return [fact(nothing, value, ~nothing)]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        return [torch.zeros((1,) * len(value.shape), dtype=torch.bool) for value in call.inputs]


def tie_broadcast(kept: KeepSets, operand: Value, result: Value) -> None:
    """Tie an operand's dimensions to the result's, aligned on the right; broadcast ones stay whole."""
    for back in range(1, len(operand.shape) + 1):
        if operand.shape[-back] == result.shape[-back]:
            kept.couple((operand, -back), (result, -back))
        else:
            kept.keep_all(operand, [-back])
