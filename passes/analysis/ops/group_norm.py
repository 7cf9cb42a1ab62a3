"""Group normalisation: statistics over whole groups of channels, which stay or go together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts, any_over
from sparsefx.passes.analysis.ops.batch_norm import BatchNorm
from sparsefx.passes.analysis.ops.normalisation import scaled_by_zero
from sparsefx.passes.graph.program import Call, Value


class GroupNorm:
    """``aten.native_group_norm``: (input, weight, bias, N, C, positions, groups, eps)."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        weight, bias = self.scale_and_shift(call)
        source = facts[call.inputs[0]]
        shape = [1, -1, *(1,) * (source.value.dim() - 2)]
        varies, value = source.over(1, call.inputs[0].shape[1])
        varies = varies.view(self.groups(call), -1).any(1, keepdim=True).expand(self.groups(call), -1)
        varies = varies.repeat_interleave(len(value) // len(varies))
        result = fact(varies.view(shape), self._normalised(call, value, facts).view(shape))
        if weight is not None:
            result = _either(scaled_by_zero(facts, weight, bias, source.value.dim(), 1), result)
        return [result, *(unknown(output) for output in call.outputs[1:])]

    def _normalised(self, call: Call, value: Tensor, facts: Facts) -> Tensor:
        """The result (C,) for an input (C,) that is the same at all positions."""
        grouped = value.double().view(self.groups(call), -1)
        centred = grouped - grouped.mean(1, keepdim=True)
        result = (centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps(call))).flatten()
        weight, bias = (None if v is None else facts[v].value for v in self.scale_and_shift(call))
        result = result if weight is None else result * weight
        return (result if bias is None else result + bias).to(value.dtype)

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        source = call.inputs[0]
        channels = any_over(wanted[0], [dim for dim in range(wanted[0].dim()) if dim != 1])
        groups = channels.flatten().expand(source.shape[1]).view(self.groups(call), -1).any(1)
        read = groups.repeat_interleave(source.shape[1] // self.groups(call))
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
        groups = torch.zeros(self.groups(call), dtype=torch.bool)
        for value, dim in vectors:
            groups = groups | kept.of(value, dim).view(self.groups(call), -1).any(1)
        for value, dim in vectors:
            kept.keep(value, dim, groups.repeat_interleave(source.shape[1] // self.groups(call)))
        for statistic in call.outputs[1:]:
            kept.couple((statistic, 0), (output, 0))
            kept.keep(statistic, 1, groups)

    def scale_and_shift(self, call: Call) -> tuple[Value | None, Value | None]:
        """The vectors (C,) of the call, where it has them."""
        return call.args[1], call.args[2]

    def groups(self, call: Call) -> int:
        """How many groups the channels form."""
        return int(call.args[6])

    def eps(self, call: Call) -> float:
        """What is added to the variance."""
        return float(call.args[7])


class InstanceNorm(GroupNorm):
    """``aten.instance_norm``: (input, weight, bias, mean, var, of the input, momentum, eps, cudnn).

    Each channel is a group of its own. With running statistics, as in evaluation, it is a batch norm.
    """

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        return super().forward(call, facts) if call.args[5] else _RUNNING.forward(_as_batch_norm(call), facts)

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        if call.args[5]:
            return super().backward(call, facts, wanted)
        return _RUNNING.backward(_as_batch_norm(call), facts, wanted)

    def groups(self, call: Call) -> int:
        return call.inputs[0].shape[1]


_RUNNING = BatchNorm()


def _as_batch_norm(call: Call) -> Call:
    """The same call, with the arguments of a batch norm that uses running statistics."""
    return replace(call, args=(*call.args[:5], False, *call.args[6:8]))


def _either(one: Fact, other: Fact) -> Fact:
    """What is known by one fact or by another one."""
    varies = one.varies & other.varies
    value = torch.where(one.varies, other.value, one.value)
    return fact(varies, value, one.fixed & ~one.varies)
