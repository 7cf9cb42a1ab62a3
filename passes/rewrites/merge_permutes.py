"""Permutations of dimensions, one after the other, as one; those that undo each other part layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.manager.pipeline import Outcome


@dataclass(frozen=True)
class MergePermutes:
    """Turn ``x.permute(p).permute(q)`` into one permutation, or into ``x`` where they undo each other.

    ``transpose`` is one, too. A result that others read as well stays, so nothing is computed twice.
    """

    name = "merge_permutes"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the graph in place."""
        pairs = [node for node in graph_module.graph.nodes if _permutes(node) and _permutes(node.args[0])]
        program = analyses.program_of_first if pairs else None
        merged = 0
        for node in pairs:
            inner = node.args[0]  # perhaps a merged one, or none any more
            tensors = program.node_inputs[node] if program else []
            if not _permutes(inner) or len(tensors) != 1:
                continue
            first, second = (_permutation(one, len(tensors[0].shape)) for one in (inner, node))
            if first is None or second is None:
                continue
            dims = [first[dim] for dim in second]
            undone = dims == sorted(dims)
            if not undone and len(inner.users) > 1:
                continue
            source = inner.args[0]
            if undone:
                node.replace_all_uses_with(source)
                graph_module.graph.erase_node(node)
            else:
                node.op, node.target, node.args, node.kwargs = "call_method", "permute", (source, *dims), {}
            if not inner.users:
                graph_module.graph.erase_node(inner)
            merged += 1
        return Outcome(merged > 0, f"{merged} merged")


def _permutes(node: object) -> bool:
    """Whether a node is a permutation of a tensor's dimensions, all of them given by position."""
    if not isinstance(node, fx.Node) or node.kwargs or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    functions = {"call_method": ("permute", "transpose"), "call_function": (torch.permute, torch.transpose)}
    return node.target in functions.get(node.op, ())


def _permutation(node: fx.Node, rank: int) -> list[int] | None:
    """For each dimension of the result, the dimension that it was; None if that is not in the graph."""
    given = node.args[1:]
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    dims = [dim % rank for dim in given if isinstance(dim, int)]
    if len(dims) != len(given):
        return None
    if node.target not in ("transpose", torch.transpose):
        return dims
    one, other = dims
    swapped = list(range(rank))
    swapped[one], swapped[other] = other, one
    return swapped
