"""Scaled dot-product attention, in the fused forms that torch has for each device."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts, any_over
from sparsefx.passes.graph.program import Call, Value
from sparsefx.passes.running.broadcast import broadcast_shapes


class Attention:
    """``softmax(q k^T) v`` for q (..., L, E), k (..., S, E), v (..., S, Ev), with any mask.

    The weights of a row sum to 1, so a channel of v that is constant comes out as that constant;
    with a mask only 0 does, since a row may be masked as a whole. A head of k or v may serve several
    heads of q next to each other (grouped queries).
    """

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        q, _, v, *masks = call.inputs
        known = facts[v]
        first = known.value.narrow(-2, 0, 1)
        alike = ~(known.varies | (known.value != first)).any(-2, keepdim=True)
        constant = alike & (first == 0) if masks else alike
        constant = constant.expand(broadcast_shapes(constant.shape, first.shape))
        parts = (constant, first, known.fixed.all(-2, keepdim=True))
        constant, first, fixed = (_to_queries(part, v, q) for part in parts)
        result = fact(~constant, first.where(constant, 0).expand(constant.shape), fixed & constant)
        return [result, *(unknown(output) for output in call.outputs[1:])]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        q, k, v, *masks = call.inputs
        out = wanted[0]
        some = any_over(out, [-1])
        read_q = some & facts[q].may_be_nonzero & _to_queries(any_over(facts[k].may_be_nonzero, [-2]), k, q)
        asked = any_over(some, [-2]) & any_over(facts[q].may_be_nonzero, [-2])
        read_k = _from_queries(asked, k) & facts[k].may_be_nonzero
        read_v = _from_queries(any_over(out, [-2]), v)
        whole = (torch.ones((1,) * len(mask.shape), dtype=torch.bool) for mask in masks)
        return [*(_fit(*pair) for pair in ((read_q, q), (read_k, k), (read_v, v))), *whole]

    def couple(self, call: Call, kept: KeepSets) -> None:
        q, k, v, *masks = call.inputs
        out = call.outputs[0]
        kept.couple((q, -1), (k, -1))
        kept.couple((v, -1), (out, -1))
        kept.couple((q, -2), (out, -2))
        if _is_causal(call) or any(_reaches(mask, -2) for mask in masks):  # positions mean something
            kept.keep_all(q, [-2])
        kept.keep_all(k, [-2])
        kept.keep_all(v, [-2])
        for dim in range(len(q.shape) - 2):
            values = (q, k, v, out)
            whole = len({value.shape[dim] for value in values}) > 1
            whole = whole or any(_reaches(mask, dim - len(q.shape)) for mask in masks)
            for value in values:
                kept.keep_all(value, [dim]) if whole else kept.couple((q, dim), (value, dim))
        for value in masks:
            kept.keep_all(value)
        for saved in call.outputs[1:]:  # the sums of the softmax, and random states; no node reads them
            for dim in range(len(saved.shape)):
                coupled = dim < len(out.shape) - 2 and saved.shape[dim] == out.shape[dim]
                kept.couple((saved, dim), (out, dim)) if coupled else kept.keep_all(saved, [dim])


def _to_queries(part: Tensor, value: Value, queries: Value) -> Tensor:
    """What is said of the heads of k or v, for each head of q."""
    if part.dim() < 3 or part.shape[-3] == 1:
        return part
    return part.repeat_interleave(queries.shape[-3] // value.shape[-3], -3)


def _from_queries(elements: Tensor, value: Value) -> Tensor:
    """Heads of k or v that any of their heads of q asks for."""
    if elements.dim() < 3 or elements.shape[-3] == 1:
        return elements
    by_head: Tensor = elements.unflatten(-3, (value.shape[-3], -1))
    return by_head.any(-3)


def _is_causal(call: Call) -> bool:
    position = [argument.name for argument in call.op._schema.arguments].index("is_causal")
    return bool(call.args[position] if position < len(call.args) else call.kwargs.get("is_causal"))


def _reaches(mask: Value, dim: int) -> bool:
    """Whether a mask differs along a dimension, counted from the back."""
    return len(mask.shape) >= -dim and mask.shape[dim] > 1


def _fit(elements: Tensor, value: Value) -> Tensor:
    """Reduce dimensions that the operand has once."""
    for dim, size in enumerate(value.shape):
        if elements.shape[dim] not in (1, size):
            elements = elements.any(dim, keepdim=True)
    return elements
