"""Operations that look positions up: embeddings, and indexing by tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts
from sparsefx.passes.graph.program import Call, Value

_MASKS = (torch.bool, torch.uint8)


class Embedding:
    """``aten.embedding`` (weight, indices): rows of a table. Its columns are coupled with the last dimension.

    A column that is one number in every row gives that number.
    """

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        known, (output,) = facts[call.inputs[0]], call.outputs
        varies, value = known.over(1, output.shape[-1])
        shape = [1] * (len(output.shape) - 1) + [-1]
        parts = (varies, value, known.fixed_over(1, output.shape[-1]))
        return [fact(*(part.view(shape) for part in parts))]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        _, indices = call.inputs
        columns = wanted[0].reshape(-1, wanted[0].shape[-1]).any(0, keepdim=True)
        return [columns, torch.ones((1,) * len(indices.shape), dtype=torch.bool)]

    def couple(self, call: Call, kept: KeepSets) -> None:
        table, indices = call.inputs
        (output,) = call.outputs
        kept.keep_all(table, [0])
        kept.keep_all(indices)
        kept.keep_all(output, range(len(output.shape) - 1))
        kept.couple((table, 1), (output, -1))


class Index:
    """``aten.index`` and ``index_select``: positions named by tensors; the other dimensions are coupled."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        return [unknown(output) for output in call.outputs]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        source, *indices = call.inputs
        shape = [1] * len(source.shape)
        read = torch.ones(shape, dtype=torch.bool)
        for dim, result in _pairs(call):
            over = [d for d in range(wanted[0].dim()) if d != result]
            vector = wanted[0].any(over) if over else wanted[0]
            read = read & vector.view([-1 if d == dim else 1 for d in range(len(shape))])
        return [read, *(torch.ones((1,) * len(index.shape), dtype=torch.bool) for index in indices)]

    def couple(self, call: Call, kept: KeepSets) -> None:
        source, *indices = call.inputs
        (output,) = call.outputs
        for index in indices:
            kept.keep_all(index)
        pairs = _pairs(call)
        kept.keep_all(source, set(range(len(source.shape))) - {dim for dim, _ in pairs})
        kept.keep_all(output, set(range(len(output.shape))) - {dim for _, dim in pairs})
        for dim, result in pairs:
            kept.couple((source, dim), (output, result))


def _pairs(call: Call) -> list[tuple[int, int]]:
    """The dimensions that are not indexed, with their place in the result."""
    source, (output,) = call.inputs[0], call.outputs
    rank = len(source.shape)
    if call.name == "index_select":
        return [(dim, dim) for dim in range(rank) if dim != call.args[1] % rank]
    indexed = _indexed_dims(call.args[1])
    width = len(output.shape) - (rank - len(indexed))  # the dimensions of the indices together
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    if not adjacent:  # the indexed dimensions come first
        free = [dim for dim in range(rank) if dim not in indexed]
        return [(dim, width + place) for place, dim in enumerate(free)]
    after = indexed[-1] + 1
    return [(dim, dim) for dim in range(indexed[0])] + [
        (dim, dim - len(indexed) + width) for dim in range(after, rank)
    ]


def _indexed_dims(indices: Sequence[Value | None]) -> list[int]:
    """The dimensions of the operand that tensors name positions of; a mask covers as many as it has."""
    dim, indexed = 0, list[int]()
    for index in indices:
        covered = 1 if index is None or index.dtype not in _MASKS else len(index.shape)
        indexed += [] if index is None else range(dim, dim + covered)
        dim += covered
    return indexed
