"""Sizes that are equal in every example only by chance, and so are not fixed.

A mask may select equally many positions in each example, and two lengths may be padded to one multiple. A
size that follows from a coincidental one is coincidental too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsefx.passes.graph.recorder import is_reshape
from sparsefx.passes.running.eager_mode import EagerMode

_FLATTENS = frozenset({torch.flatten, "flatten"})


class SizesFromData(EagerMode):
    """Notes whether an operation runs within it whose result has sizes that depend on data."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.dynamic_output_shape in func.tags
        return func(*args, **(kwargs or {}))


Loose = frozenset[int] | tuple[Any, ...]
"""The loose dimensions of a tensor; of a tuple or list, those of each of its parts."""


def from_data(call: Callable[..., Any], arguments: Any, result: Any) -> Loose:
    """The dimensions of a result that have other sizes with other data.

    Args:
        call: makes the result, from the arguments.
        arguments: positional and keyword arguments; their tensors are the data.
        result: what they gave.
    """
    others: list[Any] = []
    for replace in (torch.zeros_like, torch.ones_like, _all_different):
        with contextlib.suppress(Exception):  # an index beyond the end, say
            others.append(call(*pytree.tree_map_only(Tensor, replace, arguments)))
    return _differing([result, *others])


def _all_different(data: Tensor) -> Tensor:
    return torch.arange(data.numel(), device=data.device).view(data.shape).to(data.dtype)


def _differing(values: list[Any]) -> Loose:
    """The dimensions whose sizes differ from value to value; all where there is but one."""
    if isinstance(values[0], (tuple, list)):
        return tuple(_differing([value[place] for value in values]) for place in range(len(values[0])))
    if not isinstance(values[0], Tensor):
        return frozenset()
    dims = range(values[0].dim())
    return frozenset(dim for dim in dims if len(values) == 1 or len(set(_in_each(values, dim))) > 1)


def either(one: Loose, other: Loose) -> Loose:
    """The dimensions that are loose for one reason or another."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(either(*parts) for parts in zip(one, other, strict=True))
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return one | other
    return one if isinstance(one, tuple) else other


def inherited(proxy: Any, operands: Sequence[Any]) -> Loose:
    """The dimensions of a result that are loose because of its operands, which are proxies too."""
    tensors = [operand for operand in operands if _are_tensors(operand.examples)]
    found = sized_like(proxy.examples, operands)
    if isinstance(found, tuple) or not _are_tensors(proxy.examples):
        return found
    dims = range(proxy.examples[0].dim())
    if is_reshape(proxy.node) or proxy.node.target in _FLATTENS:
        loose = any(operand.loose for operand in tensors)
        return found | {dim for dim in dims if _is_computed(proxy.node, dim, loose)}
    if len(tensors) == 1 and len(operands) > 1:
        return found | _made_by_an_amount(proxy, tensors[0])
    return found


def sized_like(values: list[Any], operands: Sequence[Any]) -> Loose:
    """The dimensions of a result that have the sizes of an operand's loose ones in every example."""
    tensors = [operand for operand in operands if _are_tensors(operand.examples)]
    return _of_sizes(
        values, {_in_each(operand.examples, dim) for operand in tensors for dim in operand.loose}
    )


def _of_sizes(values: list[Any], sizes: set[tuple[int, ...]]) -> Loose:
    """The dimensions that have certain sizes in the examples."""
    if all(isinstance(value, (tuple, list)) for value in values) and len({len(v) for v in values}) == 1:
        return tuple(_of_sizes([value[i] for value in values], sizes) for i in range(len(values[0])))
    if not _are_tensors(values):
        return frozenset()
    return frozenset(dim for dim in range(values[0].dim()) if _in_each(values, dim) in sizes)


def _made_by_an_amount(proxy: Any, source: Any) -> set[int]:
    """The dimensions that a computed amount changed, such as a padding to a multiple of 8."""
    if proxy.examples[0].dim() != source.examples[0].dim():
        return set()
    dims = range(proxy.examples[0].dim())
    return {dim for dim in dims if _in_each(proxy.examples, dim) != _in_each(source.examples, dim)}


def _is_computed(node: fx.Node, dim: int, loose: bool) -> bool:
    """Whether a reshape gives a dimension a computed size, or what is left of loose ones."""
    if node.target in _FLATTENS:
        return loose and dim > 0
    sizes: Any = node.args[1:] or (node.kwargs["shape"],)
    size = (sizes[0] if isinstance(sizes[0], (tuple, list)) else sizes)[dim]
    return isinstance(size, fx.Node) or (loose and size == -1)


def _are_tensors(values: list[Any]) -> bool:
    """Whether all values are tensors of one rank."""
    return all(isinstance(value, Tensor) for value in values) and len({value.dim() for value in values}) == 1


def _in_each(values: list[Any], dim: int) -> tuple[int, ...]:
    return tuple(value.shape[dim] for value in values)
