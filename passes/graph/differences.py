"""What differs between runs of one graph at several sizes, noted in the program of one of them."""

from __future__ import annotations

from sparsefx.passes.graph.program import Call, Program
from sparsefx.passes.graph.view_groups import view_groups

_VIEWS = frozenset({"view", "_unsafe_view"})


def mark_what_differs(program: Program, other: Program) -> None:
    """Note the dimensions that have another size in a second run, and nodes that ran other operations."""
    pairs = list(zip(program.inputs, other.inputs, strict=True))
    for node, calls in program.by_node.items():
        others = other.calls_of(node)
        if [(call.name, len(call.outputs)) for call in calls] != [(c.name, len(c.outputs)) for c in others]:
            for call in calls:
                call.opaque = True
                for value in call.outputs:
                    value.varying.update(range(len(value.shape)))
            continue
        for call, its in zip(calls, others, strict=True):
            pairs += zip(call.outputs, its.outputs, strict=True)
            if call.name in _VIEWS and _same_ranks(call, its):
                _mark_regrouped(call, its)
            elif call.name in _VIEWS:
                call.opaque = True
    for value, its_value in pairs:
        if len(value.shape) == len(its_value.shape):
            sizes = zip(value.shape, its_value.shape, strict=True)
            value.varying.update(dim for dim, (one, two) in enumerate(sizes) if one != two)


def _same_ranks(call: Call, its: Call) -> bool:
    ranks = [[len(value.shape) for value in (*c.inputs, *c.outputs)] for c in (call, its)]
    return ranks[0] == ranks[1]


def _mark_regrouped(call: Call, its: Call) -> None:
    """Note the dimensions that a view takes together in another run, and not in this one.

    ``(b, n, 12)`` as ``(b, 4, 3, -1)`` splits the channels where n is 4, and mixes them with the
    positions where it is 8.
    """
    (source,), (result,) = call.inputs, call.outputs
    sources, results = [source.shape, its.inputs[0].shape], [result.shape, its.outputs[0].shape]
    here, row, column = view_groups(sources[:1], results[:1]), 0, 0
    for rows, columns in view_groups(sources, results):
        if any(row <= r <= rows and column <= c <= columns for r, c in here if (r, c) != (rows, columns)):
            call.regrouped.update(range(row, rows))
            source.varying.update(range(row, rows))
            result.varying.update(range(column, columns))
        here = [end for end in here if end > (rows, columns)]
        row, column = rows, columns
