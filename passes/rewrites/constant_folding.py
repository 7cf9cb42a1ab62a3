"""Compute once what follows from parameters alone, such as a standardised weight."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.in_place import writes
from sparsefx.passes.graph.layers import drop_unread, erase_unused
from sparsefx.passes.graph.recorder import is_torch_function
from sparsefx.passes.manager.pipeline import Outcome


@dataclass(frozen=True)
class ConstantFolding:
    """Replace a computation on parameters alone, without an input, by its result.

    Some layers normalise their weight in each forward. The result is a weight like any other, in which rows
    may be empty; computed once, it makes the call that of a plain layer. The pass leaves a result alone that
    is larger than its parameters or only a view of them.
    """

    name = "constant_folding"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the graph in place."""
        known = _known(graph_module)
        found = [node for node in known if any(user not in known for user in node.users)]
        computed = [node for node in found if _is_worth_it(node, known)]
        for node in computed:
            name = f"{node.name}_computed"
            value = known[node]
            trainable = any(
                isinstance(s, nn.Parameter) and s.requires_grad for s in _sources(node, known).values()
            )
            graph_module.register_parameter(name, nn.Parameter(value.detach().clone(), trainable))
            with graph_module.graph.inserting_before(node):
                node.replace_all_uses_with(graph_module.graph.get_attr(name))
        reads = {str(node.target) for node in known if node.op == "get_attr"}
        erase_unused(graph_module.graph, reversed(list(known)))
        drop_unread(graph_module, reads)
        return Outcome(bool(computed), f"{len(computed)} computed")


def _known(graph_module: fx.GraphModule) -> dict[fx.Node, Any]:
    """The nodes that follow from parameters and buffers alone, with their values."""
    known: dict[fx.Node, Any] = {}
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    nodes = list(graph_module.graph.nodes)
    written = {source.target for node in nodes if writes(node) for source in _ancestors(node)}
    for node in nodes:
        if node.op == "get_attr" and node.target not in written:
            known[node] = operator.attrgetter(str(node.target))(graph_module)
        elif (
            _is_pure(node)
            and node.all_input_nodes
            and all(source in known for source in node.all_input_nodes)
        ):
            state = torch.get_rng_state()
            value = _value(node, known, modules)
            if torch.equal(torch.get_rng_state(), state):  # it drew no random numbers
                known[node] = value
    return known


@torch.no_grad()
def _value(node: fx.Node, known: dict[fx.Node, Any], modules: Mapping[str, nn.Module]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: known[source])
    target: Any = modules[str(node.target)] if node.op == "call_module" else node.target
    return (
        getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
    )


def _is_pure(node: fx.Node) -> bool:
    """Whether a node runs code of torch's that only computes, or a parametrization, which does no more."""
    is_torchs = node.op == "call_method" or (node.op == "call_function" and is_torch_function(node.target))
    parametrizes = node.op == "call_module" and ".parametrizations." in f".{node.target}"
    return (is_torchs and not writes(node)) or parametrizes


def _is_worth_it(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    value, sources = known[node], _sources(node, known)
    if node.op == "get_attr" or not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    tensors = [source for source in sources.values() if isinstance(source, Tensor)]
    shared = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    own = all(user in known for source in sources for user in source.users)  # no others need the originals
    smaller = value.numel() <= sum(tensor.numel() for tensor in tensors)
    parameters = any(isinstance(tensor, nn.Parameter) for tensor in tensors)
    return own and smaller and parameters and value.untyped_storage().data_ptr() not in shared


def _sources(node: fx.Node, known: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """The parameters and buffers that a node is made of."""
    return {source: known[source] for source in _ancestors(node) if source.op == "get_attr"}


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:  # each node waits once, when it is found
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found
