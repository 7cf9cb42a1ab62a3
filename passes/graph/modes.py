"""Literals that differ between training and evaluation, such as ``F.dropout(x, 0.5, self.training)``.

Tracing bakes ``self.training`` into a graph. The passes rewrite the graph of evaluation; for a result that
will be trained, the literals in which the graph of training differs are made values of a :class:`ByMode`
first, and at the end :func:`split_modes` writes both graphs out again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from sparsefx.passes.graph.graph_module import TwoModeGraphModule


class ByMode(nn.Module):
    """Hands out one value in training and another one in evaluation."""

    def __init__(self, training: Any, evaluation: Any) -> None:
        super().__init__()
        self.values = {True: training, False: evaluation}

    def forward(self) -> Any:
        """The value of the present mode."""
        return self.values[self.training]


def follow_mode(graph_module: fx.GraphModule, training: fx.Graph) -> str | None:
    """Let the literals of an evaluation graph follow the mode, in place.

    The nodes of the two graphs are paired in order: the same operation on paired operands. What only
    the graph of training has (an auxiliary head, noise between two layers) is left out.

    Args:
        graph_module: the graph of evaluation.
        training: the graph of the same model in training.

    Returns:
        Where the graphs differ in more than literals; None if they do not.
    """
    pairs: dict[fx.Node, fx.Node] = {}
    others = _without_checks(training)
    start, missing = 0, list[fx.Node]()
    for node in _without_checks(graph_module.graph):
        found = next((at for at in range(start, len(others)) if _match(node, others[at], pairs)), None)
        if found is None:
            missing.append(node)
            continue
        pairs[node], start = others[found], found + 1
        _follow(graph_module, node, others[found])
    graph_module.recompile()
    paired = set(pairs.values())
    extra = [node for node in others if node not in paired]
    if missing:
        return (
            "it returns something else"
            if missing[0].op == "output"
            else f"{missing[0].name} has other operands"
        )
    return f"{extra[0].name} is computed then only" if extra else None


def split_modes(graph_module: fx.GraphModule, held_back: Mapping[bool, Sequence[str]]) -> TwoModeGraphModule:
    """A graph for each mode, with plain literals in the place of every :class:`ByMode`.

    Args:
        graph_module: a rewritten graph; its modules are taken over.
        held_back: the modules that ``train`` leaves in the other mode, by the mode.
    """
    evaluation = graph_module.graph
    values = {
        node: layer.values
        for node in evaluation.nodes
        if node.op == "call_module" and isinstance(layer := graph_module.get_submodule(node.target), ByMode)
    }
    training = copy.deepcopy(evaluation) if values else evaluation
    if values:
        copies = dict(zip(evaluation.nodes, training.nodes, strict=True))
        for node, by_mode in values.items():
            _replace(copies[node], by_mode[True])
            _replace(node, by_mode[False])
        graph_module.delete_all_unused_submodules()
    names = {name for name, _ in graph_module.named_modules()}
    left = {mode: [name for name in held if name in names] for mode, held in held_back.items()}
    return TwoModeGraphModule(graph_module, training, evaluation, left)


def _without_checks(graph: fx.Graph) -> list[fx.Node]:
    """The nodes, without the attribute reads that have no reader, which a check leaves behind."""
    unused: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if (node.op == "get_attr" or node.target is getattr) and unused.issuperset(node.users):
            unused.add(node)
    return [node for node in graph.nodes if node not in unused]


def _match(node: fx.Node, other: fx.Node, pairs: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether two nodes do the same to paired operands, whatever their literals."""
    if node.op != other.op or node.target != other.target:
        return False
    leaves, spec = _flat(node)
    its_leaves, its_spec = _flat(other)
    return spec == its_spec and all(
        _same_operand(leaf, its, pairs) for leaf, its in zip(leaves, its_leaves, strict=True)
    )


def _same_operand(leaf: Any, other: Any, pairs: Mapping[fx.Node, fx.Node]) -> bool:
    if isinstance(leaf, slice) and isinstance(other, slice):
        bounds = zip((leaf.start, leaf.stop, leaf.step), (other.start, other.stop, other.step), strict=True)
        return all(_same_operand(one, its, pairs) and _is_same(one, its) for one, its in bounds)
    if isinstance(leaf, fx.Node) or isinstance(other, fx.Node):
        # one that has no partner computes otherwise in training, which is reported once
        return isinstance(leaf, fx.Node) and isinstance(other, fx.Node) and pairs.get(leaf, other) is other
    return True


def _is_same(leaf: Any, other: Any) -> bool:
    return isinstance(leaf, fx.Node) or (type(leaf) is type(other) and bool(leaf == other))


def _follow(graph_module: fx.GraphModule, node: fx.Node, other: fx.Node) -> None:
    leaves, spec = _flat(node)
    for position, its in enumerate(_flat(other)[0]):
        leaf = leaves[position]
        if isinstance(leaf, slice) or _is_same(leaf, its):
            continue
        name = f"{node.name}_by_mode_{position}"
        while hasattr(graph_module, name):  # at most once an attribute that there is
            name += "_"
        graph_module.add_submodule(name, ByMode(its, leaf).train(graph_module.training))
        with graph_module.graph.inserting_before(node):
            leaves[position] = graph_module.graph.call_module(name)
    node.args, node.kwargs = pytree.tree_unflatten(leaves, spec)


def _flat(node: fx.Node) -> tuple[list[Any], pytree.TreeSpec]:
    return pytree.tree_flatten((node.args, node.kwargs))


def _replace(node: fx.Node, value: Any) -> None:
    """Put a literal in the place of a node, and erase it."""
    for user in list(node.users):
        leaves, spec = _flat(user)
        user.args, user.kwargs = pytree.tree_unflatten(
            [value if leaf is node else leaf for leaf in leaves], spec
        )
    node.graph.erase_node(node)
