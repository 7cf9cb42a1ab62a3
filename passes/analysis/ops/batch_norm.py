"""Batch normalisation: a scale and a shift per channel, from running statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts
from sparsefx.passes.graph.program import Call, Value
from sparsefx.passes.running.broadcast import broadcast_shapes


class BatchNorm:
    """``aten.native_batch_norm`` and its kin: (input, weight, bias, mean, var, training, momentum, eps)."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        known = facts[call.inputs[0]]
        weight, bias, mean, var = (
            facts[value].value.view(-1, *(1,) * (known.value.dim() - 2)) if value is not None else None
            for value in _parameters(call)
        )
        if mean is None or var is None:  # statistics of the batch
            return [unknown(output) for output in call.outputs]
        value = (known.value - mean) * torch.rsqrt(var + call.args[-1])
        value = value if weight is None else value * weight
        value = value if bias is None else value + bias
        shape = broadcast_shapes(known.varies.shape, value.shape)
        result = fact(known.varies.expand(shape), value, known.fixed)
        return [result, *(unknown(output) for output in call.outputs[1:])]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        read = wanted[0]
        if _parameters(call)[2] is None:
            read = read.any([dim for dim in range(read.dim()) if dim != 1], keepdim=True)
        return [read, *(torch.zeros(1, dtype=torch.bool) for _ in call.inputs[1:])]

    def couple(self, call: Call, kept: KeepSets) -> None:
        source, output = call.inputs[0], call.outputs[0]
        for dim in range(len(source.shape)):
            kept.couple((source, dim), (output, dim))
        for vector in (*call.inputs[1:], *call.outputs[1:]):
            if (
                vector.shape == output.shape[1:2]
            ):  # torch saves statistics, or empty tensors, beside the result
                kept.couple((vector, 0), (output, 1))


def _parameters(call: Call) -> tuple[Value | None, Value | None, Value | None, Value | None]:
    weight, bias, mean, var = call.args[1:5]
    return (weight, bias, None, None) if call.args[5] else (weight, bias, mean, var)
