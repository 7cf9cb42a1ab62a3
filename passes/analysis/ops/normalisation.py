"""Layer and RMS normalisation: statistics over the last dimensions, then a scale and a shift."""

from __future__ import annotations

import torch

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.ops.base import Facts
from sparsefx.passes.analysis.ops.reduction import Mix
from sparsefx.passes.graph.program import Call, Value


class Normalisation(Mix):
    """``native_layer_norm`` and ``_fused_rms_norm``: a channel whose scale is 0 is its shift."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        weight = call.args[2] if len(call.args) > 2 else None
        if weight is None:
            return super().forward(call, facts)
        shift = call.args[3] if call.name == "native_layer_norm" else None
        result = scaled_by_zero(facts, weight, shift, len(call.outputs[0].shape))
        return [result, *(unknown(output) for output in call.outputs[1:])]


def scaled_by_zero(
    facts: Facts, weight: Value, bias: Value | None, rank: int, dim: int | None = None
) -> Fact:
    """What is known of a result by its scale and shift alone.

    Args:
        facts: the facts so far.
        weight: the scale.
        bias: the shift, if there is one.
        rank: the number of dimensions of the result.
        dim: the dimension of the result that a vector of scales belongs to; the last ones by default.
    """
    scale = facts[weight]
    varies, fixed = scale.varies | (scale.value != 0), scale.fixed
    value = torch.zeros_like(scale.value) if bias is None else facts[bias].value
    if bias is not None:
        varies, fixed = varies | facts[bias].varies, fixed & facts[bias].fixed
    shape = [1] * (rank - value.dim()) + list(value.shape) if dim is None else [1] * rank
    if dim is not None:
        shape[dim] = value.shape[0]
    varies, fixed = varies.expand(value.shape), fixed.expand(value.shape)
    return fact(varies.reshape(shape), value.reshape(shape), fixed.reshape(shape))
