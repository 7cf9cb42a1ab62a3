"""Operations that mix elements along some dimensions: reductions, poolings, softmax and norms.

What they mix must stay whole (a mean or a statistic reads all of it); along the other dimensions
they are elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts, any_over
from sparsefx.passes.graph.program import Call
from sparsefx.passes.running.broadcast import broadcast_shapes


@dataclass(frozen=True)
class Mix:
    """One rule for all operations that mix whole dimensions of their first operand.

    Attributes:
        dims: the dimensions of the first operand that are mixed.
        keeps_constant: whether mixing equal constants gives that constant.
    """

    dims: Callable[[Call], list[int]]
    keeps_constant: Callable[[Call], bool] = lambda call: False

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        known, mixed = facts[call.inputs[0]], self.mixed(call)
        varies, value, fixed = any_over(known.varies, mixed), known.value, known.fixed
        if not self.keeps_constant(call):
            varies = torch.ones_like(varies)
        for dim in mixed:
            first = value.narrow(dim, 0, 1)
            varies = varies | (value != first).any(dim, keepdim=True)
            value, fixed = first, fixed.all(dim, keepdim=True)
        varies = any_over(varies, mixed)
        varies = varies.expand(broadcast_shapes(varies.shape, value.shape))
        if len(call.outputs[0].shape) < value.dim():
            varies, value, fixed = varies.squeeze(mixed), value.squeeze(mixed), fixed.squeeze(mixed)
        # the others are indices of maxima or saved statistics
        return [fact(varies, value, fixed), *(unknown(output) for output in call.outputs[1:])]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        source, read = call.inputs[0], wanted[0]
        for other in wanted[1:]:  # indices of maxima, a mean beside the deviation
            read = read | (other if other.dim() == read.dim() else other.any())
        if len(call.outputs[0].shape) < len(source.shape):
            for dim in self.mixed(call):
                read = read.unsqueeze(dim)
        else:
            read = any_over(read, self.mixed(call))
        parameters = [torch.ones((1,) * len(value.shape), dtype=torch.bool) for value in call.inputs[1:]]
        return [read, *parameters]

    def couple(self, call: Call, kept: KeepSets) -> None:
        source, mixed = call.inputs[0], self.mixed(call)
        kept.keep_all(source, mixed)
        for parameter in call.inputs[1:]:
            kept.keep_all(parameter)
        left = [dim for dim in range(len(source.shape)) if dim not in mixed]
        for output in call.outputs:
            if len(output.shape) == len(source.shape):
                kept.keep_all(output, mixed)
                pairs = [(dim, dim) for dim in left]
            elif len(output.shape) == len(left):
                pairs = list(zip(left, range(len(left)), strict=True))
            else:  # a saved statistic of another shape
                kept.keep_all(output)
                continue
            for dim, result in pairs:
                kept.couple((source, dim), (output, result))

    def mixed(self, call: Call) -> list[int]:
        """The dimensions that it mixes, from the front."""
        rank = len(call.inputs[0].shape)
        return sorted({dim % rank for dim in self.dims(call)})


class Softmax(Mix):
    """Along the last dimension it leaves rows that sum to 1."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        (known,) = super().forward(call, facts)
        return [replace(known, averages=self.mixed(call) == [len(call.outputs[0].shape) - 1])]


def last_dims(count: int) -> Callable[[Call], list[int]]:
    """The last ``count`` dimensions: the positions of an image."""
    return lambda call: list(range(-count, 0))


def dims_argument(call: Call) -> list[int]:
    """The dimensions named by the second argument; all where there is none."""
    dims = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    if dims is None or dims == []:
        return list(range(len(call.inputs[0].shape)))
    return [dims] if isinstance(dims, int) else list(dims)


def norm_dims(call: Call) -> list[int]:
    """The dimensions of a vector norm; all where it names none."""
    dims = call.args[2] if len(call.args) > 2 else call.kwargs.get("dim")
    return list(range(len(call.inputs[0].shape))) if dims is None else list(dims)


def normalized_dims(call: Call) -> list[int]:
    """The last dimensions, as many as ``normalized_shape`` has."""
    return list(range(-len(call.args[1]), 0))


def pads_nothing(call: Call) -> bool:
    """Whether an average pooling leaves a constant as it is at the border too."""
    padding = call.args[3] if len(call.args) > 3 else [0]
    count_include_pad = call.args[5] if len(call.args) > 5 else True
    divisor_override = call.args[6] if len(call.args) > 6 else None
    return divisor_override is None and (not any(padding) or not count_include_pad)


def always(call: Call) -> bool:
    """Mixing a constant with itself gives it back, as in a mean or a maximum."""
    return True
