"""Calls of a model at the sizes that it takes: what trial runs found, and what to compare later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Place = tuple[int, int]
"""A dimension of the inputs: the number of the leaf among all leaves, and the dimension."""


@dataclass(frozen=True)
class Check:
    """A call at further sizes, and what the model returns."""

    inputs: Any
    outputs: Any


@dataclass(frozen=True)
class Trials:
    """Calls of a model at sizes that it takes.

    Attributes:
        inputs: the arguments of each call, in a tuple or by name; the user's own come first. They differ in
            every size that varies.
        checks: calls at further sizes, at which whatever is made of the model must compute what it does.
        limits: the least and the largest size of dimensions that vary a little only.
    """

    inputs: Sequence[Any]
    checks: Sequence[Check] = ()
    limits: Mapping[Place, tuple[int, int]] = field(default_factory=dict)

    def also_at(self, *others: Any) -> Trials:
        """The same with further calls among the inputs."""
        return replace(self, inputs=[*self.inputs, *others])

    def renamed(self, function: Callable[[Any], Any]) -> Trials:
        """The same with arguments in another form."""
        checks = [Check(function(check.inputs), check.outputs) for check in self.checks]
        return replace(self, inputs=[function(values) for values in self.inputs], checks=checks)


def groups_of(inputs: Any) -> list[tuple[Place, ...]]:
    """Dimensions of the tensors, those of one size together; of one tensor, the first by itself."""
    groups: dict[tuple[bool, int], list[Place]] = {}
    for number, leaf in enumerate(pytree.tree_leaves(inputs)):
        if isinstance(leaf, Tensor) and not leaf.is_nested:
            for dim, size in enumerate(leaf.shape):
                groups.setdefault((dim == 0, size), []).append((number, dim))
    return list(map(tuple, groups.values()))


def resized(inputs: Any, sizes: Mapping[Place, int]) -> Any:
    """The inputs with some dimensions of other sizes: elements are left out or come again."""
    leaves, spec = pytree.tree_flatten(inputs)
    for (number, dim), size in sorted(sizes.items()):
        leaf = leaves[number]
        positions = torch.arange(size, device=leaf.device) % max(leaf.shape[dim], 1)
        leaves[number] = leaf.index_select(dim, positions)
    return pytree.tree_unflatten(leaves, spec)
