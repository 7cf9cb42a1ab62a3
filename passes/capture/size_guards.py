"""A graph refuses sizes of its arguments for which it was not traced.

A size that is the same in every example is fixed: the graph may hold it and what follows from it as numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsefx.passes.capture.argument_guards import traced_again
from sparsefx.passes.running.trials import Place, Trials


class SizeError(ValueError):
    """An input has a size that its graph was not made for."""


@dataclass(frozen=True)
class InputSize:
    """One dimension of an input: whether it varies, and in which range it was tried.

    Attributes:
        argument: the argument, such as ``"x"``, ``"x[0]"`` or ``"x['mask']"``.
        dim: the dimension.
        size: its size in the example.
        least: the smallest size at which the exported graph was seen to compute what the model does.
        most: the largest.
        limited: whether sizes outside ``least`` to ``most`` are refused. This is so if both equal ``size``,
            which is then fixed, and if the model refused the next sizes.
        graph: the module whose argument it is; ``""`` is the model itself.
    """

    argument: str
    dim: int
    size: int
    least: int
    most: int
    limited: bool
    graph: str = ""

    def __str__(self) -> str:
        dimension = f"dimension {self.dim} of {self.argument}"
        if self.least == self.most:
            return f"{dimension} is fixed at {self.size}"
        if self.limited:
            return f"{dimension} varies from {self.least} to {self.most}; the model takes no others"
        return f"{dimension} varies; tried from {self.least} to {self.most}"

    def inside(self, part: str) -> InputSize:
        """The same, of a part of the model."""
        return replace(self, graph=part)


def input_sizes(trials: Trials) -> list[InputSize]:
    """What a graph was tried at, for each dimension of each tensor among its arguments."""
    return [size for leaf in _leaves(trials) for size in leaf.sizes]


def guard_sizes(graph: fx.Graph, trials: Trials) -> None:
    """Let a graph refuse sizes that it was not made for, in place.

    Args:
        graph: the graph.
        trials: its arguments by name.
    """
    placeholders = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    if not placeholders:
        return
    last = list(placeholders.values())[-1]
    with graph.inserting_before(last.next):
        for leaf in _leaves(trials):
            limits = [(size.dim, size.least, size.most) for size in leaf.sizes if size.limited]
            if limits and leaf.path[0] in placeholders:
                _insert(graph, placeholders[leaf.path[0]], leaf, limits)


def require_sizes(value: Tensor, rank: int, limits: list[tuple[int, int, int]], name: str) -> None:
    """Refuse a tensor of sizes that a graph was not made for.

    Args:
        value: the tensor.
        rank: the number of its dimensions; one of another rank is let through.
        limits: dimension, least and largest size.
        name: what the tensor is called.

    Raises:
        SizeError: a size is outside its limits.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript skips what is below such an ``if`` alone)
        if torch.jit.is_tracing() or traced_again(require_sizes, value, rank, limits, name):
            return
    if value.dim() != rank:
        return
    for dim, least, most in limits:
        size = value.shape[dim]
        if size < least or size > most:
            _refuse(size, dim, least, most, name)


def _refuse(size: int, dim: int, least: int, most: int, name: str) -> None:
    known = f"{least}" if least == most else f"{least} to {most}"
    raise SizeError(
        f"argument {name!r} has size {size} in dimension {dim}; the model was exported for {known}, since it "
        "took no other size when tried. Export it with an example of the size that is needed"
    )


torch.fx.node.has_side_effect(require_sizes)


@dataclass(frozen=True)
class _Leaf:
    """A tensor among the arguments: the keys that lead to it, argument first, and its dimensions."""

    path: tuple[Any, ...]
    rank: int
    sizes: list[InputSize]


def _leaves(trials: Trials) -> Iterator[_Leaf]:
    calls = [pytree.tree_leaves(call) for call in trials.inputs]
    seen = [*calls, *(pytree.tree_leaves(check.inputs) for check in trials.checks)]
    if any(len(leaves) != len(seen[0]) for leaves in seen):
        return
    for number, (path, leaf) in enumerate(pytree.tree_flatten_with_path(trials.inputs[0])[0]):
        keys = _keys(path)
        ranks = {values[number].dim() for values in seen if isinstance(values[number], Tensor)}
        if keys is not None and isinstance(leaf, Tensor) and len(ranks) == 1:
            of_calls, of_all = ([values[number].shape for values in some] for some in (calls, seen))
            yield _Leaf(keys, leaf.dim(), list(_sizes(number, keys, of_calls, of_all, trials.limits)))


def _sizes(
    number: int,
    path: tuple[Any, ...],
    of_calls: Sequence[torch.Size],
    of_all: Sequence[torch.Size],
    limits: Mapping[Place, tuple[int, int]],
) -> Iterator[InputSize]:
    name = str(path[0]).lstrip("*") + "".join(f"[{key!r}]" for key in path[1:])
    for dim, size in enumerate(of_calls[0]):
        tried = [shape[dim] for shape in of_all]
        tried += limits.get((number, dim), ())
        is_fixed = len({shape[dim] for shape in of_calls}) == 1
        yield InputSize(name, dim, size, min(tried), max(tried), is_fixed or (number, dim) in limits)


def _keys(path: pytree.KeyPath) -> tuple[Any, ...] | None:
    """The keys of lists, tuples and dicts that lead to a leaf; None where it is in something else."""
    known = all(isinstance(key, (pytree.MappingKey, pytree.SequenceKey)) for key in path)
    return tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path) if known else None


def _insert(graph: fx.Graph, node: fx.Node, leaf: _Leaf, limits: list[tuple[int, int, int]]) -> None:
    for key in leaf.path[1:]:
        node = graph.call_function(operator.getitem, (node, key))
    graph.call_function(require_sizes, (node, leaf.rank, limits, leaf.sizes[0].argument))
