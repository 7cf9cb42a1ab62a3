"""Literal sizes and positions in a graph's nodes, and how they follow when channels are removed.

``view(-1, 64)``, ``split([32, 32], 1)``, ``x[:, 32:]`` hold numbers that were right for the original
widths. Each kind of node here has a rewriter, which computes the numbers for the remaining channels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.graph.program import Program, Value
from sparsefx.passes.graph.recorder import is_reshape


@dataclass(frozen=True)
class Change:
    """A node, its first operand and its results, with what is kept of them."""

    node: fx.Node
    source: Value
    results: list[Value]
    kept: KeepSets

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name; the operand itself is at position 0."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def dim(self, position: int, default: int = 0) -> int:
        """The dimension argument, counted from the front."""
        return int(self.argument(position, "dim", default)) % len(self.source.shape)

    def is_cut(self, dim: int) -> bool:
        """Whether the operand loses indices along a dimension."""
        return not bool(self.kept.of(self.source, dim).all())

    def before(self, dim: int, position: int) -> int:
        """How many kept indices come before a position."""
        return int(self.kept.of(self.source, dim)[:position].sum())


Rewriter = Callable[[Change], None]


def rewriter_of(node: fx.Node) -> Rewriter | None:
    """The rewriter of a node's literals; None where there is none."""
    if node.op not in ("call_function", "call_method"):
        return None
    if is_reshape(node):
        return _rewrite_sizes
    if node.target is operator.getitem:
        return _rewrite_index if _is_plain_index(node.args[1]) else None
    return _REWRITERS.get(node.target)


def rewrite_literals(node: fx.Node, program: Program, kept: KeepSets) -> None:
    """Bring the literals of one node in line with what is kept; nothing for other nodes."""
    rewrite = rewriter_of(node)
    sources, results = program.node_inputs[node], program.node_values[node]
    if rewrite is None or not sources or not results:
        return
    if node.target is operator.getitem and not program.calls_of(node):
        return  # a part of a tuple, such as the result of a split
    change = Change(node, sources[0], results, kept)
    if node.target == "view" and node.op == "call_method":
        node.target = "reshape"  # fewer channels may be laid out otherwise, and a view would refuse them
    if not all(kept.is_full(value) for value in (change.source, *results)):
        rewrite(change)


def _rewrite_sizes(change: Change) -> None:
    """``view``, ``reshape``, ``expand``: literal sizes that changed; -1 and computed ones stay."""
    node, (result,) = change.node, change.results
    sizes = node.args[1:] if len(node.args) > 1 else (node.kwargs["shape"],)
    nested = len(sizes) == 1 and isinstance(sizes[0], (tuple, list))
    listed: Any = sizes[0] if nested else sizes
    replaced = _replaced(listed, result.shape, change.kept.shape(result))
    if "shape" in node.kwargs:
        node.kwargs = {**node.kwargs, "shape": replaced}
    else:
        node.args = (node.args[0], replaced) if nested else (node.args[0], *replaced)


def _replaced(sizes: Any, old: Sequence[int], new: Sequence[int]) -> tuple[Any, ...]:
    """Sizes with the literal ones that changed at their new values; -1 and computed ones stay."""
    return tuple(
        b if isinstance(size, int) and size == a else size for size, a, b in zip(sizes, old, new, strict=True)
    )


def _rewrite_unflatten(change: Change) -> None:
    node, (result,), dim = change.node, change.results, change.dim(1)
    sizes = change.argument(2, "sizes")
    among = slice(dim, dim + len(sizes))
    node.args = (node.args[0], dim, _replaced(sizes, result.shape[among], change.kept.shape(result)[among]))
    node.kwargs = {}


def _rewrite_sections(change: Change) -> None:
    """``split``, ``chunk`` and their kin become a ``split`` into the sections that are left."""
    dim = change.dim(2)
    if not change.is_cut(dim):
        return
    sections = [change.kept.shape(result)[dim] for result in change.results]
    node = change.node
    node.op, node.target = "call_function", torch.split
    node.args, node.kwargs = (node.args[0], sections, dim), {}


def _rewrite_select(change: Change) -> None:
    dim = change.dim(1)
    if change.is_cut(dim):
        position = int(change.argument(2, "index")) % change.source.shape[dim]
        change.node.args, change.node.kwargs = (change.node.args[0], dim, change.before(dim, position)), {}


def _rewrite_narrow(change: Change) -> None:
    dim = change.dim(1)
    if change.is_cut(dim):
        start = int(change.argument(2, "start")) % change.source.shape[dim]
        (result,) = change.results
        length = change.kept.shape(result)[dim]
        change.node.args = (change.node.args[0], dim, change.before(dim, start), length)
        change.node.kwargs = {}


def _rewrite_index(change: Change) -> None:
    """``x[:, 2:8]`` and ``x[..., 3]``."""
    items = _as_tuple(change.node.args[1])
    rank = len(change.source.shape)
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    dim, rewritten = 0, []
    for item in items:
        if item is Ellipsis:
            dim += rank - consumed
        elif item is not None:
            item = _follow(change, dim, item)
            dim += 1
        rewritten.append(item)
    change.node.args = (change.node.args[0], tuple(rewritten))


def _follow(change: Change, dim: int, item: Any) -> Any:
    size = change.source.shape[dim]
    if not change.is_cut(dim) or (isinstance(item, slice) and item == slice(None)):
        return item
    if isinstance(item, int):
        return change.before(dim, item % size)
    start, stop, _ = item.indices(size)
    return slice(change.before(dim, start), change.before(dim, stop), None)


def _is_plain_index(index: Any) -> bool:
    return all(
        item is None or isinstance(item, (int, slice)) or item is Ellipsis for item in _as_tuple(index)
    )


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return tuple(index) if isinstance(index, (tuple, list)) else (index,)


def cannot_follow(node: fx.Node, source: Value) -> list[int]:
    """Dimensions along which a node's positions cannot be rewritten: a slice with steps, computed bounds."""
    if node.target is not operator.getitem or not _is_plain_index(node.args[1]):
        return []
    items = _as_tuple(node.args[1])
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    dim, found = 0, []
    for item in items:
        if item is Ellipsis:
            dim += len(source.shape) - consumed
        elif item is not None:
            if isinstance(item, slice):
                computed = any(isinstance(bound, fx.Node) for bound in (item.start, item.stop, item.step))
                found += [dim] if computed or item.step not in (None, 1) else []
            dim += 1
    return found


_SECTIONS = ("split", "chunk", "tensor_split", "split_with_sizes")
_REWRITERS: dict[Any, Rewriter] = {
    **dict.fromkeys([*_SECTIONS, *(getattr(torch, name) for name in _SECTIONS)], _rewrite_sections),
    **dict.fromkeys(["select", torch.select], _rewrite_select),
    **dict.fromkeys(["narrow", torch.narrow], _rewrite_narrow),
    **dict.fromkeys(["unflatten", torch.unflatten], _rewrite_unflatten),
    "expand": _rewrite_sizes,
}
