"""Facts about a program's values: which elements vary with the input, and the constants of the others.

A fact is kept in two tensors that broadcast to the value's shape: a dimension of size 1 means that
all its indices are equal. Convolutions, poolings and norms leave facts that are uniform over batch
and space, so a fact holds for any batch and image size, and is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sparsefx.passes.graph.program import Value


@dataclass(frozen=True)
class Fact:
    """What is known of one value.

    Attributes:
        varies: bool, broadcastable to the value's shape and of its rank: True where the element may
            depend on the model's input (or is not known).
        value: the element where it does not vary; 0 elsewhere. Broadcastable to the value's shape.
        fixed: bool, broadcastable to the value's shape: True where the value comes from parameters alone: a
            parameter, the bias of an empty row, and what is made of them. Such a value stays what it is
            whatever else is removed from the graph; a sum that only comes out constant may not.
        averages: each row along the last dimension is known to sum to 1, as the weights of an attention do.
    """

    varies: Tensor
    value: Tensor
    fixed: Tensor
    averages: bool = False

    @cached_property
    def may_be_nonzero(self) -> Tensor:
        """False where the element is a zero that a product can rely on."""
        return ~self.fixed | (self.value != 0)

    def over(self, dim: int, size: int) -> tuple[Tensor, Tensor]:
        """``varies`` and ``value`` over one dimension alone: two vectors of ``size``.

        An index whose elements are not all the same constant varies.
        """
        varies = self.varies.movedim(dim, 0).reshape(self.varies.shape[dim], -1)
        value = self.value.movedim(dim, 0).reshape(self.value.shape[dim], -1)
        first = value[:, 0]
        varies = varies.any(1) | (value != first[:, None]).any(1)
        return varies.expand(size), first.masked_fill(varies, 0).expand(size)

    def fixed_over(self, dim: int, size: int) -> Tensor:
        """``fixed`` over one dimension alone: a vector of ``size``."""
        return self.fixed.movedim(dim, 0).flatten(1).all(1).expand(size)


def fact(varies: Tensor, value: Tensor, fixed: Tensor | None = None) -> Fact:
    """A fact in the least space; what is not finite counts as varying.

    Args:
        varies: bool, broadcastable to the shape of the value that the fact is about.
        value: broadcastable to the value's shape, of its data type.
        fixed: bool, broadcastable to the value's shape; nothing is fixed by default.
    """
    if not _is_finite(value):
        varies = varies | ~torch.isfinite(value)
    fixed = torch.zeros((1,) * value.dim(), dtype=torch.bool) if fixed is None else fixed & ~varies
    if bool(varies.any()):
        value = torch.where(varies, torch.zeros((), dtype=value.dtype), value)
    else:
        varies = torch.zeros((1,) * value.dim(), dtype=torch.bool)
    return compact(Fact(varies, value, fixed))


def _is_finite(value: Tensor) -> bool:
    """Whether all elements surely are finite: then their sum is, unless it overflows."""
    return bool(torch.isfinite(value.sum()))


def uniform_dims(*tensors: Tensor) -> list[int]:
    """The dimensions along which each of some tensors of one rank is alike, of sizes above 1."""
    return [
        dim
        for dim in range(tensors[0].dim())
        if any(tensor.shape[dim] > 1 for tensor in tensors)
        and all(_is_uniform(tensor, dim) for tensor in tensors if tensor.numel())
    ]


def _is_uniform(tensor: Tensor, dim: int) -> bool:
    first, last = tensor.narrow(dim, 0, 1), tensor.narrow(dim, tensor.shape[dim] - 1, 1)
    # most are told apart by their ends
    return torch.equal(first, last) and bool((tensor == first).all())


def first_along(tensor: Tensor, dims: list[int]) -> Tensor:
    """The first index of some dimensions, which stay with size 1."""
    for dim in dims:
        tensor = tensor.narrow(dim, 0, min(1, tensor.shape[dim]))
    return tensor


def compact(known: Fact) -> Fact:
    """The same fact with size 1 along dimensions whose indices are all alike: what follows is cheaper."""
    parts = known.varies, known.value, known.fixed
    dims = uniform_dims(*parts)
    if not dims:
        return known
    varies, value, fixed = (first_along(part, dims) for part in parts)
    return replace(known, varies=varies, value=value, fixed=fixed)


def unknown(value: Value) -> Fact:
    """Nothing is known: every element may vary."""
    shape = (1,) * len(value.shape)
    nothing = torch.zeros(shape, dtype=torch.bool)
    return Fact(~nothing, torch.zeros(shape, dtype=value.dtype), nothing)


def constant(tensor: Tensor) -> Fact:
    """The fact of a constant tensor of any shape: nothing varies. Facts live on the CPU."""
    nothing = torch.zeros((1,) * tensor.dim(), dtype=torch.bool)
    value = tensor.cpu()
    return Fact(nothing, value, ~nothing) if _is_finite(value) else fact(nothing, value, ~nothing)
