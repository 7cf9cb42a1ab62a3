"""Contractions: convolutions of any kind and matrix products.

They read an operand only where the other factor is not a zero of the parameters; both keep the
same indices along what they sum over.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts, Unknown, any_over, reduce_to
from sparsefx.passes.analysis.ops.elementwise import tie_broadcast
from sparsefx.passes.graph.program import Call, Value


@dataclass(frozen=True)
class ConvolutionCall:
    """The arguments of ``aten.convolution`` by name, and its channels as groups x outputs x inputs."""

    input: Value
    weight: Value
    bias: Value | None
    padding: list[int]
    transposed: bool
    groups: int

    @classmethod
    def of(cls, call: Call) -> ConvolutionCall:
        """Read a recorded ``aten.convolution``."""
        x, weight, bias, _, padding, _, transposed, _, groups = call.args
        return cls(x, weight, bias, padding, transposed, groups)

    def grouped(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape, or uniform over its taps, as (groups, outputs, inputs, taps)."""
        taps = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
        if self.transposed:  # (groups * inputs, outputs, taps)
            return taps.view(self.groups, -1, *taps.shape[1:]).transpose(1, 2)
        return taps.view(self.groups, -1, *taps.shape[1:])

    def ungrouped(self, per_tap: Tensor) -> Tensor:
        """The inverse of :meth:`grouped` for a tensor uniform over taps: (groups, outputs, inputs)."""
        matrix = (per_tap.transpose(1, 2) if self.transposed else per_tap).flatten(0, 1)
        return matrix.view(*matrix.shape, *(1,) * (len(self.weight.shape) - 2))

    @property
    def spreads_evenly(self) -> bool:
        """Whether a constant channel stays constant at every position, as no zeros are mixed in."""
        return not self.transposed and not any(self.padding)


class Convolution:
    """``aten.convolution``: convolutions and transposed ones in 1, 2 or 3 dimensions, any groups."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        conv = ConvolutionCall.of(call)
        weight = facts[conv.weight]
        if not bool(weight.fixed.all()):
            return [unknown(call.outputs[0])]
        kernel = conv.grouped(weight.value.expand(conv.weight.shape).double())
        varies_in, value_in = facts[conv.input].over(1, conv.input.shape[1])
        varying, value_in = varies_in.reshape(conv.groups, -1), value_in.reshape(conv.groups, -1).double()
        uneven = varying if conv.spreads_evenly else varying | (value_in != 0)
        reads = (kernel != 0).any(3).double()
        varies = torch.einsum("goi,gi->go", reads, uneven.double()) > 0
        loose = ~facts[conv.input].fixed_over(1, conv.input.shape[1]).reshape(conv.groups, -1)
        fixed = torch.einsum("goi,gi->go", reads, loose.double()) == 0
        value = torch.einsum("goi,gi->go", kernel.sum(3), value_in).flatten()
        fixed = fixed.flatten()
        if conv.bias is not None:
            value, fixed = value + facts[conv.bias].value, fixed & facts[conv.bias].fixed
        shape = [1, -1] + [1] * (len(conv.input.shape) - 2)
        return [fact(varies.view(shape), value.to(conv.weight.dtype).view(shape), fixed.view(shape))]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        conv = ConvolutionCall.of(call)
        matters = facts[conv.weight].may_be_nonzero.expand(conv.weight.shape)
        read = conv.grouped(matters).any(3)
        outputs = any_over(wanted[0], [d for d in range(wanted[0].dim()) if d != 1]).flatten()
        outputs = outputs.expand(call.outputs[0].shape[1])
        read = read & outputs.reshape(conv.groups, -1, 1)
        inputs = read.any(1).flatten().view(1, -1, *(1,) * (len(conv.input.shape) - 2))
        reads = [inputs, conv.ungrouped(read)]
        return [*reads, outputs] if conv.bias is not None else reads

    def couple(self, call: Call, kept: KeepSets) -> None:
        conv, (output,) = ConvolutionCall.of(call), call.outputs
        rows, columns = (1, 0) if conv.transposed else (0, 1)
        kept.couple((conv.input, 0), (output, 0))
        for value in (conv.input, output, conv.weight):
            kept.keep_all(value, range(2, len(value.shape)))
        if conv.bias is not None:
            kept.couple((conv.bias, 0), (output, 1))
        if conv.groups == 1:
            kept.couple((conv.input, 1), (conv.weight, columns))
            kept.couple((output, 1), (conv.weight, rows))
        else:
            self._tie_groups(conv, output, kept)

    def _tie_groups(self, conv: ConvolutionCall, output: Value, kept: KeepSets) -> None:
        """Every group that stays has equally many input and equally many output channels.

        Which they are may differ from group to group: the weight is cut group by group.
        """
        inputs = kept.of(conv.input, 1).view(conv.groups, -1)
        outputs = kept.of(output, 1).view(conv.groups, -1)
        if not conv.transposed:  # the rows of the weight are the outputs of all groups
            outputs = outputs | kept.of(conv.weight, 0).view(conv.groups, -1)
        else:
            inputs = inputs | kept.of(conv.weight, 0).view(conv.groups, -1)
        groups = inputs.any(1) | outputs.any(1)
        inputs, outputs = (_equally_many(channels, groups, kept) for channels in (inputs, outputs))
        kept.keep(conv.input, 1, inputs.flatten())
        kept.keep(output, 1, outputs.flatten())
        rows, columns = (inputs, outputs) if conv.transposed else (outputs, inputs)
        kept.keep(conv.weight, 0, rows.flatten())
        kept.select_by_row(conv.weight, columns.repeat_interleave(rows.shape[1], 0))


def _equally_many(channels: Tensor, groups: Tensor, kept: KeepSets) -> Tensor:
    """Keep more channels (groups, channels of one), so that every group that stays has as many."""
    if not bool(groups.any()):
        return channels
    count = kept.group_width(int(channels.sum(1).max()), channels.shape[1])
    places = torch.argsort((~channels).to(torch.int8), dim=1, stable=True)[:, :count]
    return torch.zeros_like(channels).scatter(1, places, True) & groups[:, None] | channels


class MatrixProduct:
    """``mm`` and ``bmm`` (..., m, k) x (..., k, n), and ``addmm``/``baddbmm`` with an addend first."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        addend, left, right = _operands(call)
        if _is_scaled(call):
            return Unknown().forward(call, facts)
        k = left.shape[-1]
        a_varies, a_value = _full(facts[left], -1, k)
        b_varies, b_value = _full(facts[right], -2, k)
        a_any, b_any = a_varies | (a_value != 0), b_varies | (b_value != 0)
        varies = _any_product(a_varies, b_any) | _any_product(a_any, b_varies)
        value = _matmul(a_value, b_value)
        a_matters, b_matters = (
            _expand_dim(facts[left].may_be_nonzero, -1, k),
            _expand_dim(facts[right].may_be_nonzero, -2, k),
        )
        a_loose, b_loose = _expand_dim(~facts[left].fixed, -1, k), _expand_dim(~facts[right].fixed, -2, k)
        fixed = ~(_any_product(a_loose, b_matters) | _any_product(a_matters, b_loose))
        if facts[left].averages:  # the mean of a column that is one constant is that constant
            first = b_value.narrow(-2, 0, 1)
            alike = ~(b_varies | (b_value != first)).any(-2, keepdim=True)
            varies, value = varies & ~alike, torch.where(alike, first, value)
            fixed = fixed | (alike & ~b_loose.any(-2, keepdim=True))
        if addend is not None:
            varies, value = varies | facts[addend].varies, value + facts[addend].value
            fixed = fixed & facts[addend].fixed
        return [fact(varies, value, fixed)]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        addend, left, right = _operands(call)
        if _is_scaled(call):
            return Unknown().backward(call, facts, wanted)
        m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
        out = wanted[0]
        a = _expand_dim(facts[left].may_be_nonzero, -1, k)
        b = _expand_dim(_expand_dim(facts[right].may_be_nonzero, -2, k), -1, n)
        read_a = a & _any_product(_expand_dim(out, -1, n), b.transpose(-1, -2))
        rows = m if a.shape[-2] > 1 or out.shape[-2] > 1 else 1
        columns = _expand_dim(a, -2, rows).transpose(-1, -2)
        read_b = b & _any_product(columns, _expand_dim(out, -2, rows))
        if addend is None:
            return [read_a, read_b]
        return [reduce_to(out, addend), read_a, read_b]

    def couple(self, call: Call, kept: KeepSets) -> None:
        addend, left, right = _operands(call)
        (output,) = call.outputs
        if _is_scaled(call):
            Unknown().couple(call, kept)
            return
        kept.couple((left, -1), (right, -2))
        kept.couple((left, -2), (output, -2))
        kept.couple((right, -1), (output, -1))
        for dim in range(len(output.shape) - 2):
            kept.couple((left, dim), (output, dim))
            kept.couple((right, dim), (output, dim))
        if addend is not None:
            tie_broadcast(kept, addend, output)


def _operands(call: Call) -> tuple[Value | None, Value, Value]:
    addend = call.args[0] if call.name in ("addmm", "baddbmm") else None
    left, right = call.args[-2:]
    return addend, left, right


def _is_scaled(call: Call) -> bool:
    """Whether ``beta`` or ``alpha`` is given: models do not write that, so it is not described."""
    return bool(call.kwargs)


def _full(known: Fact, dim: int, size: int) -> tuple[Tensor, Tensor]:
    return _expand_dim(known.varies, dim, size), _expand_dim(known.value, dim, size)


def _expand_dim(tensor: Tensor, dim: int, size: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size
    return tensor.expand(shape)


def _matmul(one: Tensor, other: Tensor) -> Tensor:
    """The matrix product; a factor that is all 0 (an operand that varies everywhere) costs nothing."""
    if bool(one.any()) and bool(other.any()):
        return one @ other
    return torch.zeros((1,) * max(one.dim(), other.dim()), dtype=one.dtype)


def _any_product(one: Tensor, other: Tensor) -> Tensor:
    """The matrix product over (and, or); a float32 sum of zeros and ones is 0 only if all are."""
    if not bool(one.any()) or not bool(other.any()):  # a parameter varies nowhere, say
        return torch.zeros((1,) * max(one.dim(), other.dim()), dtype=torch.bool)
    if bool(one.all()):  # after a norm everything varies
        return other.any(-2, keepdim=True)
    if bool(other.all()):
        return one.any(-1, keepdim=True)
    return (one.float() @ other.float()) > 0
