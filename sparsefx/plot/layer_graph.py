"""The layers of an fx graph and what flows between them, without the many small operations."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from sparsefx.report.export_report import LayerChange

Kind = Literal["input", "output", "layer", "module", "gather", "scatter", "join"]

_MEASURES = frozenset({"size", "dim", "numel", "stride", "item"})
_TENSOR_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "real", "imag", "data"})
_BY_INDEX: dict[Any, Kind] = {(torch.index_select, 3): "gather", (torch.index_add, 4): "scatter"}
_TIMES = "\N{MULTIPLICATION SIGN}"
_SYMBOLS = {"add": "+", "iadd": "+", "add_": "+", "mul": _TIMES, "imul": _TIMES, "mul_": _TIMES}


@dataclass(frozen=True)
class Node:
    """What is drawn of a graph.

    Attributes:
        kind: a Linear or Conv layer, another module with parameters, channels gathered or scattered, or
            where several results ``join``.
        title: the layer's name, or what is done.
        what: the layer's class, with the size of its kernel.
        change: a layer before and after.
    """

    kind: Kind
    title: str
    what: str = ""
    change: LayerChange | None = None


@dataclass
class LayerGraph:
    """What is drawn of a graph, and how it hangs together.

    Attributes:
        nodes: in the order in which they run.
        edges: pairs of places in ``nodes``, from what is read to what reads it.
        gathered: places of what reads gathered channels.
        scattered: places of what is added to some channels of another result.
    """

    nodes: list[Node] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    gathered: set[int] = field(default_factory=set)
    scattered: set[int] = field(default_factory=set)

    def add(self, node: Node, read: Iterable[int]) -> int:
        """Add a node that reads others; its place."""
        place = len(self.nodes)
        self.nodes.append(node)
        for source in read:
            self.edges.append((source, place))
            if self.nodes[source].kind == "gather":
                self.gathered.add(place)
        return place


def layer_graph(
    graph_module: fx.GraphModule, names: Mapping[nn.Module, str], changes: Mapping[str, LayerChange]
) -> LayerGraph:
    """The graph of a module's layers.

    What reads one drawn node only and has no parameters (an activation, a reshape) is not drawn; an edge
    goes on through it. Sizes are no data.

    Args:
        graph_module: a traced module.
        names: the modules' names in the whole model.
        changes: the Linear and Conv layers before and after, by name.
    """
    drawn = LayerGraph()
    sources: dict[fx.Node, tuple[int, ...]] = {}
    for node in graph_module.graph.nodes:
        read = _unique(sources, node)
        found = _describe(graph_module, node, read, names, changes)
        if found is None:
            sources[node] = () if _is_measure(node) else read
            continue
        sources[node] = (drawn.add(found, read),)
        if found.kind == "scatter":
            _, _, _, added = node.args
            drawn.scattered.update(sources[added])
    return drawn


def _unique(sources: Mapping[fx.Node, tuple[int, ...]], node: fx.Node) -> tuple[int, ...]:
    return tuple(dict.fromkeys(place for read in node.all_input_nodes for place in sources[read]))


def _describe(
    graph_module: fx.GraphModule,
    node: fx.Node,
    read: tuple[int, ...],
    names: Mapping[nn.Module, str],
    changes: Mapping[str, LayerChange],
) -> Node | None:
    """What is drawn for a node of the graph; None for nothing."""
    if node.op == "output":
        return Node("output", "output")
    if node.op == "placeholder":
        return Node("input", str(node.target)) if node.users else None
    if node.op == "call_module":
        return _module(graph_module.get_submodule(str(node.target)), read, names, changes)
    kind = _BY_INDEX.get((node.target, len(node.args)))
    index = _constant(graph_module, node.args[2]) if kind else None
    if kind and index is not None:
        return Node(kind, f"{kind} {index.numel():,}")
    return Node("join", _operation(node)) if len(read) > 1 else None


def _module(
    module: nn.Module,
    read: tuple[int, ...],
    names: Mapping[nn.Module, str],
    changes: Mapping[str, LayerChange],
) -> Node | None:
    name, what = names[module], type(module).__name__
    if name in changes:
        return Node("layer", name, what + _kernel(module), change=changes[name])
    if len(read) > 1 or next(module.parameters(), None) is not None:
        return Node("module", name, what)
    return None


def _kernel(module: nn.Module) -> str:
    return f" {_TIMES.join(map(str, module.kernel_size))}" if isinstance(module, _ConvNd) else ""


def _constant(graph_module: fx.GraphModule, index: Any) -> Tensor | None:
    """The indices that a graph holds; None where they are computed."""
    held = isinstance(index, fx.Node) and index.op == "get_attr"
    return operator.attrgetter(str(index.target))(graph_module) if held else None


def _is_measure(node: fx.Node) -> bool:
    """Whether a node is a number about a tensor rather than a tensor."""
    if node.target is getattr:
        return node.args[1] not in _TENSOR_ATTRIBUTES
    return node.target is len or (node.op == "call_method" and node.target in _MEASURES)


def _operation(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return _SYMBOLS.get(name, name.replace("_", " "))
