"""Bring the useless dimensions of every attention head to the same places, so that they can be cut.

Four channels are two heads of two dimensions. In the first head the second dimension does nothing, in
the second head the first one. As they lie, no dimension can be cut from both heads:

>>> from sparsefx.passes.manager.pipeline import Pipeline
>>> from sparsefx.passes.rewrites.shrink import Shrink
>>> class Scores(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.query, self.key = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
...     def forward(self, x):  # (batch, 3, 4)
...         query, key = (f(x).view(-1, 3, 2, 2).transpose(1, 2) for f in (self.query, self.key))
...         return query @ key.transpose(2, 3)
>>> rows = torch.tensor([[1.0], [0.0], [0.0], [4.0]]).expand(4, 4)
>>> def graph():
...     scores = Scores().eval()
...     scores.query.weight.data, scores.key.weight.data = rows.clone(), rows.clone()
...     return fx.symbolic_trace(scores)
>>> inputs = [(torch.randn(1, 3, 4),)]
>>> Pipeline((Shrink(),)).run(graph(), inputs)[0].detail
'0 elements of parameters and buffers removed'

The order inside a head is free, as long as queries and keys move together. Useful dimensions come first:

>>> aligned = graph()
>>> Pipeline((AlignHeadDims(),)).run(aligned, inputs)[0].detail
'1 lined up'
>>> aligned.query.weight[:, 0].tolist()
[1.0, 0.0, 4.0, 0.0]
>>> Pipeline((Shrink(),)).run(aligned, inputs)[0].detail
'16 elements of parameters and buffers removed'
>>> aligned.query.weight[:, 0].tolist()
[1.0, 4.0]
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.analysis.ops import operation_of
from sparsefx.passes.analysis.ops.elementwise import Elementwise
from sparsefx.passes.analysis.ops.movement import Movement
from sparsefx.passes.graph.layers import sole_contractions
from sparsefx.passes.graph.origins import reorder
from sparsefx.passes.graph.program import Program, Value
from sparsefx.passes.manager.pipeline import Outcome

_ATTENTION = F.scaled_dot_product_attention
_PRODUCTS = frozenset({_ATTENTION, torch.matmul, operator.matmul, "matmul"})


@dataclass(frozen=True)
class AlignHeadDims:
    """Reorder the dimensions inside each head, useful ones first.

    Heads lie side by side in one tensor, so all of them need the same number of dimensions at the same
    places. The order inside a head is free. The rows of the projections of queries and keys move together.
    The rows of the projection of values move with the columns of the output projection.
    """

    name = "align_head_dims"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Permute weights in place; the graph does not change."""
        nodes = [node for node in graph_module.graph.nodes if node.target in _PRODUCTS]
        layers = sole_contractions(graph_module)
        if not nodes or not layers:
            return Outcome(False, "0 lined up")
        program = analyses.program
        found = [
            (pair, heads) for n in nodes for pair in _pairs(n, layers, program) if (heads := _heads(pair))
        ]
        live = analyses.live(program) if found else {}
        lined_up = sum(_line_up(pair, layers, _useful(pair, heads, live), heads) for pair, heads in found)
        return Outcome(lined_up > 0, f"{lined_up} lined up")


_Layers = dict[fx.Node, nn.Linear | _ConvNd]


_End = tuple[Value, int]
"""What a product reads or makes, (..., heads, ., .), and which of the last two dimensions are features."""


@dataclass(frozen=True)
class _Pair:
    """Two linear layers whose dimensions inside a head may be reordered together.

    Attributes:
        program: the recorded graph.
        one: the layer of the keys or values, by its rows.
        other: the layer of the queries by its rows or, ``forward``, the output projection by its columns.
        product: the node between them: attention, or one of its two matrix products.
        ends: the product's side of the two chains.
    """

    program: Program
    one: fx.Node
    other: fx.Node
    product: fx.Node
    ends: tuple[_End, _End]
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


def _pairs(product: fx.Node, layers: _Layers, program: Program) -> list[_Pair]:
    """Queries with keys, and values with the output projection, where features only move in between."""
    operands, values = product.args[:3], program.node_inputs[product]
    sources = [_producer(operand, layers, program) for operand in operands]
    known = [source for source in sources if source is not None]
    if len(set(known)) < len(known):
        return []  # one layer in two roles
    # the places of keys, queries and values; a matrix product sums over the rows of its right operand
    keys, along, q, v = (1, -1, 0, 2) if product.target is _ATTENTION else (1, -2, 0, 1)
    found: list[_Pair] = []
    one, other = sources[keys], sources[q]
    if one is not None and other is not None:
        ends = ((values[keys], along), (values[q], -1))
        found.append(_Pair(program, one, other, product, ends, False))
    one, other = sources[v], _consumer(product, layers, program)
    if one is not None and other is not None:
        ends = ((values[v], -1), (program.node_values[product][0], -1))
        found.append(_Pair(program, one, other, product, ends, True))
    return found


def _producer(node: object, layers: _Layers, program: Program) -> fx.Node | None:
    """The linear layer that a value comes from, if its features only move on the way, and to nowhere else."""
    while isinstance(node, fx.Node) and _reader(node, program) is not None:  # up the graph
        if isinstance(layers.get(node), nn.Linear):
            return node
        if not _moves(node, program):
            return None
        node = node.args[0]
    return None


def _consumer(node: fx.Node, layers: _Layers, program: Program) -> fx.Node | None:
    """The linear layer that is the only reader of a value."""
    reader = _reader(node, program)
    while reader is not None and not isinstance(layers.get(reader), nn.Linear):  # down the graph
        reader = _reader(reader, program) if _moves(reader, program) else None
    return reader


def _reader(node: fx.Node, program: Program) -> fx.Node | None:
    """The only node that reads a value; asking for its size does not count."""
    readers = [user for user in node.users if program.node_values[user] or program.calls_of(user)]
    return readers[0] if len(readers) == 1 and readers[0].op != "output" else None


def _moves(node: fx.Node, program: Program) -> bool:
    """Whether a node moves or repeats the elements of its first argument, or changes each by itself."""
    calls = program.calls_of(node)
    kinds = (Movement, Elementwise)
    return len(node.args) > 0 and all(
        len(call.inputs) == 1 and isinstance(operation_of(call), kinds) for call in calls
    )


def _heads(pair: _Pair) -> _Heads | None:
    """The heads that lie side by side in both layers' features; None if they do not."""
    for value, dim in pair.ends:
        if len(value.shape) < 4 or value.varying & {len(value.shape) - 3, len(value.shape) + dim}:
            return None
    width, of_other = (value.shape[dim] for value, dim in pair.ends)
    sizes = [pair.features(node).shape[-1] for node in (pair.one, pair.other)]
    counts = [size // width for size in sizes]
    if of_other != width or [count * width for count in counts] != sizes or counts[1] % max(counts[0], 1):
        return None
    chains = [(pair.one, pair.product), (pair.other, pair.product)]
    if pair.forward:
        chains[1] = (pair.product, pair.other)
    if not all(map(_carries, (pair, pair), chains, pair.ends, counts)):
        return None
    return _Heads(counts[0], counts[1] // counts[0], width)


def _carries(pair: _Pair, chain: tuple[fx.Node, fx.Node], end: _End, count: int) -> bool:
    """Whether ``count`` heads of numbered features are where they should be at the end of a chain.

    Several heads of an attention may share one of the layer's (grouped queries): those next to each other.
    """
    (start, stop), (at, dim) = chain, end
    width, heads = at.shape[dim], at.shape[-3]
    if heads % count:
        return False
    features = torch.arange(count * width, dtype=torch.float64)
    split = features.view(count, width).repeat_interleave(heads // count, 0).unsqueeze(-3 - dim)
    given, expected = (split, features) if start is pair.product else (features, split)
    (value,) = pair.program.node_values[start]
    known = {value: given.expand(value.shape)}
    node = _reader(start, pair.program)
    while node is not None and node is not stop:  # down the graph
        for call in pair.program.calls_of(node):
            sources = [known[source].contiguous() for source in call.inputs]
            # what an elementwise operation makes of the numbers does not matter
            stays = isinstance(operation_of(call), Elementwise)
            known.update(zip(call.outputs, sources if stays else call.run(sources), strict=True))
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
