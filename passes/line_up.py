"""Bring the useless dimensions of every attention head to the same places, so that they can be cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from sparsefx.passes.examples import Inputs
from sparsefx.passes.facts import live_of
from sparsefx.passes.layers import sole_contractions
from sparsefx.passes.ops import operation_of
from sparsefx.passes.ops.movement import Movement
from sparsefx.passes.origins import reorder
from sparsefx.passes.pipeline import Outcome
from sparsefx.passes.program import Program, Value, record

_COPIES = frozenset({"clone", "alias", "detach"})


@dataclass(frozen=True)
class LineUp:
    """Reorder the dimensions inside each head, useful ones first.

    Heads lie side by side in one tensor, so that all of them need the same number of dimensions, at the
    same places. The order inside a head is free: the rows of the projections of queries and keys move
    together, and those of values with the columns of the output projection.
    """

    name = "line_up"

    def run(self, graph_module: fx.GraphModule, inputs: Inputs) -> Outcome:
        """Permute weights in place; the graph stays."""
        nodes = [n for n in graph_module.graph.nodes if n.target is F.scaled_dot_product_attention]
        layers = sole_contractions(graph_module)
        if not nodes or not layers:
            return Outcome(False, "0 lined up")
        program = record(graph_module, inputs)
        found = [
            (pair, heads) for n in nodes for pair in _pairs(n, layers, program) if (heads := _heads(pair))
        ]
        live = live_of(program) if found else {}
        lined_up = sum(_line_up(pair, layers, _useful(pair, heads, live), heads) for pair, heads in found)
        return Outcome(lined_up > 0, f"{lined_up} lined up")


_Layers = dict[fx.Node, nn.Linear | _ConvNd]


@dataclass(frozen=True)
class _Pair:
    """Two linear layers whose dimensions inside a head may be reordered together.

    Attributes:
        program: the recorded graph.
        one: the layer of the keys or values, by its rows.
        other: the layer of the queries by its rows or, ``forward``, the output projection by its columns.
        attention: the node between them.
        ends: the attention's side of the two chains.
    """

    program: Program
    one: fx.Node
    other: fx.Node
    attention: fx.Node
    ends: tuple[Value, Value]
    forward: bool

    def features(self, node: fx.Node) -> Value:
        """What is reordered: the result of a projection, or what the output projection reads."""
        is_read = self.forward and node is self.other
        return (self.program.node_inputs if is_read else self.program.node_values)[node][0]


@dataclass(frozen=True)
class _Heads:
    """``count`` heads side by side in the first layer, each for ``shared`` ones of the other."""

    count: int
    shared: int
    width: int


def _pairs(attention: fx.Node, layers: _Layers, program: Program) -> list[_Pair]:
    """Queries with keys, and values with the output projection, where features only move in between."""
    sources: Any = attention.args[:3]
    q, k, v = (_producer(source, layers, program) for source in sources)
    output = _consumer(attention, layers, program)
    found: list[_Pair] = []
    if len({q, k, v} - {None}) < sum(layer is not None for layer in (q, k, v)):
        return []  # one layer in two roles
    its_q, its_k, its_v = program.node_inputs[attention][:3]
    (result,) = program.node_values[attention]
    if q is not None and k is not None:
        found.append(_Pair(program, k, q, attention, (its_k, its_q), False))
    if v is not None and output is not None:
        found.append(_Pair(program, v, output, attention, (its_v, result), True))
    return found


def _producer(node: object, layers: _Layers, program: Program) -> fx.Node | None:
    """The linear layer that a value comes from, if its features only move on the way, and to nowhere else."""
    while isinstance(node, fx.Node) and _reader(node, program) is not None:
        if isinstance(layers.get(node), nn.Linear):
            return node
        if not _moves(node, program):
            return None
        node = node.args[0]
    return None


def _consumer(node: fx.Node, layers: _Layers, program: Program) -> fx.Node | None:
    """The linear layer that alone reads a value, likewise."""
    reader = _reader(node, program)
    while reader is not None and not isinstance(layers.get(reader), nn.Linear):
        reader = _reader(reader, program) if _moves(reader, program) else None
    return reader


def _reader(node: fx.Node, program: Program) -> fx.Node | None:
    """The only node that reads a value; asking for its size does not count."""
    readers = [user for user in node.users if program.node_values[user] or program.calls_of(user)]
    return readers[0] if len(readers) == 1 and readers[0].op != "output" else None


def _moves(node: fx.Node, program: Program) -> bool:
    """Whether a node only moves or repeats elements of its first argument."""
    calls = program.calls_of(node)
    return len(node.args) > 0 and all(
        len(call.inputs) == 1 and (call.name in _COPIES or isinstance(operation_of(call), Movement))
        for call in calls
    )


def _heads(pair: _Pair) -> _Heads | None:
    """The heads that lie side by side in both layers' features; None if they do not."""
    one, other = pair.ends
    if any(len(end.shape) != 4 or end.varying & {1, 3} for end in pair.ends):
        return None
    width = one.shape[3]
    sizes = [pair.features(node).shape[-1] for node in (pair.one, pair.other)]
    count, of_other = (size // width for size in sizes)
    if other.shape[3] != width or [count * width, of_other * width] != sizes or not count or of_other % count:
        return None
    heads = _Heads(count, of_other // count, width)
    chains = [(pair.one, pair.attention, one, count)]
    chains += (
        [(pair.attention, pair.other, other, of_other)]
        if pair.forward
        else [(pair.other, pair.attention, other, of_other)]
    )
    carried = all(_carries(pair, *chain) for chain in chains)
    return heads if carried else None


def _carries(pair: _Pair, start: fx.Node, stop: fx.Node, end: Value, count: int) -> bool:
    """Whether ``count`` heads of numbered features are where they should be at the end of a chain.

    Several heads of an attention may share one of the layer's (grouped queries): those next to each other.
    """
    features = torch.arange(count * end.shape[3], dtype=torch.float64)
    if end.shape[1] % count:
        return False
    split = features.view(1, count, 1, -1).repeat_interleave(end.shape[1] // count, 1)
    given, expected = (split, features) if start is pair.attention else (features, split)
    (value,) = pair.program.node_values[start]
    known = {value: given.expand(value.shape)}
    node = _reader(start, pair.program)
    while node is not None and node is not stop:
        for call in pair.program.calls_of(node):
            outputs = call.run([known[source] for source in call.inputs])
            known.update(zip(call.outputs, outputs, strict=True))
        (value,) = pair.program.node_values[node]
        node = _reader(node, pair.program)
    return torch.equal(known[value], expected.expand(value.shape))


def _useful(pair: _Pair, heads: _Heads, live: Mapping[Value, Tensor]) -> Tensor:
    """The features that either layer needs: bool (heads of the first layer, width)."""
    one, other = (_vector(live[value], value) for value in map(pair.features, (pair.one, pair.other)))
    shared = other.view(heads.count, heads.shared, heads.width).any(1)
    return one.view(heads.count, heads.width) | shared


def _vector(elements: Tensor, value: Value) -> Tensor:
    return elements.flatten(0, -2).any(0).expand(value.shape[-1])


@torch.no_grad()
def _line_up(pair: _Pair, layers: _Layers, useful: Tensor, heads: _Heads) -> bool:
    order = torch.argsort((~useful).to(torch.int8), dim=1, stable=True)
    if torch.equal(order, torch.arange(heads.width).expand_as(order)):
        return False
    for node, orders in ((pair.one, order), (pair.other, order.repeat_interleave(heads.shared, 0))):
        layer, columns = layers[node], pair.forward and node is pair.other
        index = (orders + torch.arange(len(orders))[:, None] * heads.width).flatten().to(layer.weight.device)
        layer.weight.copy_(layer.weight[:, index] if columns else layer.weight[index])
        reorder(layer.weight, int(columns), index)
        if layer.bias is not None and not columns:
            layer.bias.copy_(layer.bias[index])
            reorder(layer.bias, 0, index)
    return True
