"""Graphs as values that pickle takes: the nodes themselves, and not code that has to be traced again.

fx pickles a graph as its Python code and traces that code when it is loaded. Tracing again fails where the
first trace knew more than the code says, such as values of examples: constructors (``torch.zeros(n)``),
assignments to items, ``len`` of a tensor.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate, map_arg


@dataclass(frozen=True)
class NodeState:
    """One node; other nodes among its arguments are :class:`NodeName`.

    Attributes:
        name: its name.
        op: its kind, as of fx.
        target: what it calls; an overload of ``torch.ops`` by its qualified name.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class NodeName:
    """A node among the arguments of another."""

    name: str


@dataclass(frozen=True)
class OverloadName:
    """An overload of ``torch.ops``, ``("aten", "add", "Tensor")``; pickle knows no way to one."""

    namespace: str
    packet: str
    overload: str


@dataclass(frozen=True)
class FunctionName:
    """A function by its module and name, where its ``__qualname__`` leads nowhere."""

    module: str
    name: str


def graph_state(graph: fx.Graph) -> list[NodeState]:
    """A graph as values that pickle takes, as long as it takes the functions that the graph calls."""
    return [
        NodeState(
            node.name,
            node.op,
            _as_name(node.target),
            _named(node.args),
            _named(node.kwargs),
        )
        for node in graph.nodes
    ]


def graph_of(state: list[NodeState]) -> fx.Graph:
    """The graph that :func:`graph_state` described."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def found(leaf: Any) -> Any:
        return nodes[leaf.name] if isinstance(leaf, NodeName) else leaf

    for node in state:
        args: Any = map_aggregate(node.args, found)
        kwargs: Any = map_aggregate(node.kwargs, found)
        target = _by_name(node.target)
        nodes[node.name] = graph.create_node(node.op, target, args, kwargs, name=node.name)
    return graph


def _named(arguments: Any) -> Any:
    """Arguments with names in the places of nodes."""
    named: Any = map_arg(arguments, lambda source: NodeName(source.name))  # type: ignore[arg-type, return-value]
    return named


def _as_name(target: Any) -> Any:
    """A target as pickle takes it."""
    if isinstance(target, torch._ops.OpOverload):
        return OverloadName(target.namespace, target.overloadpacket.__name__, target._overloadname)
    if "<locals>" in getattr(target, "__qualname__", ""):  # F.max_pool2d and others by boolean dispatch
        name = FunctionName(target.__module__, target.__name__)
        return name if getattr(sys.modules.get(name.module), name.name, None) is target else target
    return target


def _by_name(target: Any) -> Any:
    """The target that a name stands for."""
    if isinstance(target, OverloadName):
        return getattr(getattr(getattr(torch.ops, target.namespace), target.packet), target.overload)
    if isinstance(target, FunctionName):
        return getattr(importlib.import_module(target.module), target.name)
    return target
