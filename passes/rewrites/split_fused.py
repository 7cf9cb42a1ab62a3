"""Split a linear layer whose result is split at once, such as queries, keys and values in one."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import erase_unused, sole_contractions
from sparsefx.passes.graph.origins import rows_of
from sparsefx.passes.graph.program import Program
from sparsefx.passes.graph.recorder import is_reshape
from sparsefx.passes.manager.pipeline import Outcome


@dataclass(frozen=True)
class SplitFused:
    """Give every part of a fused projection a layer of its own.

    ``linear(x).reshape(..., 3, heads, width).permute(...)``, of which queries, keys and values are then
    selected, couples their dimensions: an index can only be removed from all three. Three layers lose indices
    independently.
    """

    name = "split_fused"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the graph in place."""
        layers = sole_contractions(graph_module)
        linears = [(node, layer) for node, layer in layers.items() if isinstance(layer, nn.Linear)]
        candidates = [(node, layer) for node, layer in linears if _chain(node) is not None]
        if not candidates:
            return Outcome(False, "0 split")
        program = analyses.program
        split = sum(_split(graph_module, program, node, layer) for node, layer in candidates)
        return Outcome(split > 0, f"{split} split")


@dataclass(frozen=True)
class _Chain:
    """A reshape, a permutation if there is one, and the nodes that select along one dimension."""

    reshape: fx.Node
    permute: fx.Node | None
    selections: dict[fx.Node, int]  # node that is one part -> which


def _chain(linear: fx.Node) -> _Chain | None:
    if len(linear.users) != 1:
        return None
    (reshape,) = linear.users
    if not is_reshape(reshape) or reshape.kwargs or len(reshape.users) != 1:
        return None
    (after,) = reshape.users
    permute = after if after.op == "call_method" and after.target == "permute" else None
    last = permute or reshape
    selections = _selections(last)
    return _Chain(reshape, permute, selections) if selections else None


def _selections(node: fx.Node) -> dict[fx.Node, int]:
    """The users of a node that each select one index of its first dimension; empty if one does not."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in ("unbind", torch.unbind) and _dim_of(users[0]) == 0:
        users = list(users[0].users)
    selecting = [user for user in users if user.target is operator.getitem and isinstance(user.args[1], int)]
    return {user: int(str(user.args[1])) for user in selecting} if len(selecting) == len(users) else {}


def _dim_of(unbind: fx.Node) -> Any:
    return unbind.args[1] if len(unbind.args) > 1 else unbind.kwargs.get("dim", 0)


def _split(graph_module: fx.GraphModule, program: Program, linear: fx.Node, layer: nn.Linear) -> bool:
    chain = _chain(linear)
    assert chain is not None
    (result,) = program.node_values[chain.reshape]
    rank = len(result.shape)
    permutation = _permutation(chain.permute, rank)
    selected = permutation[0]
    sizes = _sizes(chain.reshape)
    (source,) = program.node_values[linear]
    lead = len(source.shape) - 1
    if len(sizes) != rank or selected < lead or result.shape[:lead] != source.shape[:lead]:
        return False
    if result.varying != source.varying:  # at other sizes the reshape mixes what it does not mix here
        return False
    rows = torch.arange(layer.out_features).view(result.shape[lead:])
    remaining = tuple(dim - (dim > selected) for dim in permutation[1:])
    graph = graph_module.graph
    for index in sorted({index % result.shape[selected] for index in chain.selections.values()}):
        part = _part(layer, rows.select(selected - lead, index).flatten())
        name = f"{linear.target}_{index}"
        graph_module.add_submodule(name, part)
        with graph.inserting_before(linear):
            projected = graph.call_module(name, linear.args, linear.kwargs)
        with graph.inserting_before(chain.reshape):
            left = (*sizes[:selected], *sizes[selected + 1 :])
            parts = graph.call_method("reshape", (projected, *left))
            parts = graph.call_method("permute", (parts, *remaining))
        for node, which in chain.selections.items():
            if which % result.shape[selected] == index:
                node.replace_all_uses_with(parts)
    between = [source for node in chain.selections for source in node.all_input_nodes]
    erase_unused(graph, [*chain.selections, *between, chain.permute, chain.reshape, linear])
    return True


def _permutation(permute: fx.Node | None, rank: int) -> tuple[int, ...]:
    if permute is None:
        return tuple(range(rank))
    dims: Any = permute.args[1:] if len(permute.args) > 1 else permute.kwargs["dims"]
    nested = len(dims) == 1 and isinstance(dims[0], (tuple, list))
    return tuple(int(dim) % rank for dim in (dims[0] if nested else dims))


def _sizes(reshape: fx.Node) -> tuple[Any, ...]:
    sizes: Any = reshape.args[1:]
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else tuple(sizes)


def _part(layer: nn.Linear, rows: torch.Tensor) -> nn.Linear:
    part = nn.Linear(layer.in_features, len(rows), layer.bias is not None, device="meta")
    part.weight = rows_of(layer.weight, rows)
    if layer.bias is not None:
        part.bias = rows_of(layer.bias, rows)
    return part.train(layer.training)
