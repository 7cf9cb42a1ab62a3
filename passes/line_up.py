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
from sparsefx.passes.origins import reorder
from sparsefx.passes.pipeline import Outcome
from sparsefx.passes.program import Program, Value, is_reshape, record

_REORDERINGS = frozenset({"permute", "transpose", torch.permute, torch.transpose, "contiguous", "clone"})


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
        pairs = [pair for node in nodes for pair in _pairs(node, layers)]
        if not pairs:
            return Outcome(False, "0 lined up")
        program = record(graph_module, inputs)
        live = live_of(program)
        lined_up = 0
        for pair in pairs:
            shape = _heads(program, pair)
            if shape is not None:
                useful = _outputs(live, program, pair.one) | pair.of_other(live, program)
                lined_up += _line_up(layers[pair.one], layers[pair.other], useful.view(shape), pair.forward)
        return Outcome(lined_up > 0, f"{lined_up} lined up")


_Layers = dict[fx.Node, nn.Linear | _ConvNd]


@dataclass(frozen=True)
class _Pair:
    """Two linear layers whose dimensions inside a head may be reordered together.

    Attributes:
        one: the layer of the keys or values, by its rows.
        other: the layer of the queries by its rows or, ``forward``, the output projection by its columns.
        attention: the node between them.
        ends: the nodes at the attention's side of the two chains.
    """

    one: fx.Node
    other: fx.Node
    attention: fx.Node
    ends: tuple[Any, Any]
    forward: bool

    def of_other(self, live: Mapping[Value, Tensor], program: Program) -> Tensor:
        """The useful features of the other layer."""
        if not self.forward:
            return _outputs(live, program, self.other)
        return _vector(live[program.node_inputs[self.other][0]], program.node_inputs[self.other][0])


def _pairs(attention: fx.Node, layers: _Layers) -> list[_Pair]:
    """Queries with keys, and values with the output projection, where only reshapes lie between."""
    sources: Any = attention.args[:3]
    q, k, v = (_producer(source, layers) for source in sources)
    output = _consumer(attention, layers)
    found: list[_Pair] = []
    if len({q, k, v} - {None}) < sum(layer is not None for layer in (q, k, v)):
        return []  # one layer in two roles
    if q is not None and k is not None:
        found.append(_Pair(k, q, attention, (sources[1], sources[0]), False))
    if v is not None and output is not None:
        found.append(_Pair(v, output, attention, (sources[2], attention), True))
    return found


def _producer(node: object, layers: _Layers) -> fx.Node | None:
    """The linear layer that a value comes from through reshapes and reorderings that nobody else reads."""
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if isinstance(layers.get(node), nn.Linear):
            return node
        if not _moves(node):
            return None
        node = node.args[0]
    return None


def _consumer(node: fx.Node, layers: _Layers) -> fx.Node | None:
    while len(node.users) == 1:
        (node,) = node.users
        if isinstance(layers.get(node), nn.Linear):
            return node
        if not _moves(node):
            return None
    return None


def _moves(node: fx.Node) -> bool:
    return (
        is_reshape(node)
        or node.target in _REORDERINGS
        or node.target in ("flatten", "unflatten", torch.flatten)
    )


def _heads(program: Program, pair: _Pair) -> tuple[int, int] | None:
    """(heads, width), the same on both sides and side by side in the layers' features; None otherwise."""
    ends = [program.node_values[end][0] for end in pair.ends]
    if any(len(end.shape) != 4 or end.varying & {1, 3} for end in ends):
        return None
    (heads, width), others = ((end.shape[1], end.shape[3]) for end in ends)
    features = torch.arange(heads * width, dtype=torch.float64)
    split = features.view(1, heads, 1, width)
    if others != (heads, width) or not _carries(program, pair.one, pair.attention, features, split):
        return None
    if pair.forward:
        carried = _carries(program, pair.attention, pair.other, split, features)
    else:
        carried = _carries(program, pair.other, pair.attention, features, split)
    return (heads, width) if carried else None


def _carries(program: Program, start: fx.Node, stop: fx.Node, given: Tensor, expected: Tensor) -> bool:
    """Whether the nodes between two bring numbered features of the first to expected places at the second."""
    (value,) = program.node_values[start]
    try:
        known = {value: given.expand(value.shape)}
        (node,) = start.users
        while node is not stop:
            for call in program.calls_of(node):
                outputs = call.run([known[source] for source in call.inputs])
                known.update(zip(call.outputs, outputs, strict=True))
            (value,) = program.node_values[node]
            (node,) = node.users
        return torch.equal(known[value], expected.expand(value.shape))
    except RuntimeError:  # not as many features as the heads have, or at other places
        return False


def _outputs(live: Mapping[Value, Tensor], program: Program, node: fx.Node) -> Tensor:
    (result,) = program.node_values[node]
    return _vector(live[result], result)


def _vector(elements: Tensor, value: Value) -> Tensor:
    return elements.flatten(0, -2).any(0).expand(value.shape[-1])


@torch.no_grad()
def _line_up(one: nn.Linear | _ConvNd, other: nn.Linear | _ConvNd, useful: Tensor, forward: bool) -> bool:
    order = torch.argsort((~useful).to(torch.int8), dim=1, stable=True)
    moved = (order + torch.arange(len(order))[:, None] * order.shape[1]).flatten()
    if torch.equal(moved, torch.arange(len(moved))):
        return False
    for layer, columns in ((one, False), (other, forward)):
        index = moved.to(layer.weight.device)
        layer.weight.copy_(layer.weight[:, index] if columns else layer.weight[index])
        reorder(layer.weight, int(columns), index)
        if layer.bias is not None and not columns:
            layer.bias.copy_(layer.bias[index])
            reorder(layer.bias, 0, index)
    return True
