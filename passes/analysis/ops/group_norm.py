"""Group normalisation: statistics over whole groups of channels, which stay or go together."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts, any_over
from sparsefx.passes.analysis.ops.normalisation import scaled_by_zero
from sparsefx.passes.graph.program import Call, Value


class GroupNorm:
    """``aten.native_group_norm``: (input, weight, bias, N, C, positions, groups, eps)."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        weight, bias = call.args[1:3]
        if weight is None:
            return [unknown(output) for output in call.outputs]
        result = scaled_by_zero(facts, weight, bias, len(call.outputs[0].shape), 1)
        return [result, *(unknown(output) for output in call.outputs[1:])]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        source = call.inputs[0]
        channels = any_over(wanted[0], [dim for dim in range(wanted[0].dim()) if dim != 1])
        groups = channels.flatten().expand(source.shape[1]).view(_groups(call), -1).any(1)
        read = groups.repeat_interleave(source.shape[1] // _groups(call))
        shaped = read.view(1, -1, *(1,) * (len(source.shape) - 2))
        return [shaped, *(channels.flatten() for _ in call.inputs[1:])]

    def couple(self, call: Call, kept: KeepSets) -> None:
        source, output = call.inputs[0], call.outputs[0]
        kept.couple((source, 0), (output, 0))
        for value in (source, output):
            kept.keep_all(value, range(2, len(value.shape)))
        vectors: list[tuple[Value, int]] = [
            (source, 1),
            (output, 1),
            *((value, 0) for value in call.inputs[1:]),
        ]
        groups = torch.zeros(_groups(call), dtype=torch.bool)
        for value, dim in vectors:
            groups = groups | kept.of(value, dim).view(_groups(call), -1).any(1)
        for value, dim in vectors:
            kept.keep(value, dim, groups.repeat_interleave(source.shape[1] // _groups(call)))
        for statistic in call.outputs[1:]:
            kept.couple((statistic, 0), (output, 0))
            kept.keep(statistic, 1, groups)


def _groups(call: Call) -> int:
    return int(call.args[6])
