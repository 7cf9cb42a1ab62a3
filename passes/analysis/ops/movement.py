"""Data movement: views, permutations, concatenations, slices, padding.

Such an operation only says where each element of its result comes from. It is asked by running it
on integer labels, so one rule serves them all; concatenation and permutation, the frequent ones
over large maps, also have the short form in which dimensions stay apart.

Four channels viewed as two rows of two columns, of which the second column is not read:

>>> labels = torch.arange(4)  # of the operand's elements
>>> viewed = labels.view(2, 2)
>>> viewed
tensor([[0, 1],
        [2, 3]])
>>> viewed[:, [0]].flatten().tolist()  # the operand's elements behind the columns that are read
[0, 2]

So channels 0 and 2 are live, and 1 and 3 can go: what is left, viewed as two rows of one column, is the first
column. If channel 1 had to stay, the column of channels 1 and 3 would stay whole: a view keeps rectangles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.facts import Fact, fact, unknown
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops.base import Facts, any_over
from sparsefx.passes.graph.program import Call, Value
from sparsefx.passes.graph.view_groups import view_groups
from sparsefx.passes.running.broadcast import broadcast_shapes


@dataclass(frozen=True)
class Movement:
    """Each element of a result is an element of an operand, or a constant put in by padding.

    Attributes:
        literal_dims: the dimensions along which the call names positions (a slice's start, a split's
            sizes).
        whole: such dimensions always stay whole; otherwise only where their size follows the input,
            since other positions may then be the ones that are named.
    """

    literal_dims: Callable[[Call], list[int]] = lambda call: []
    whole: bool = False

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        dims = self._uniform_dims(call)
        operands = [alike_along(facts[value], dims) for value in call.inputs]
        pairs = list(zip(operands, call.inputs, strict=True))
        marks = [f.varies.to(f.value.dtype).expand(v.shape).contiguous() for f, v in pairs]
        varies = [mark != 0 for mark in call.run(marks)]
        if all(bool(result.all()) for result in varies):
            averages = call.name == "expand" and facts[call.inputs[0]].averages
            return [replace(unknown(output), averages=averages) for output in call.outputs]
        values = call.run([f.value.expand(v.shape).contiguous() for f, v in pairs])
        loose = [(~f.fixed).to(f.value.dtype).expand(v.shape).contiguous() for f, v in pairs]
        fixed = [mark == 0 for mark in call.run(loose)]
        return [fact(*parts) for parts in zip(varies, values, fixed, strict=True)]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        empty = any(output.shape.numel() == 0 for output in call.outputs)  # says nothing of other sizes
        if not empty and not any(bool(elements.any()) for elements in wanted):
            return [torch.zeros((1,) * len(value.shape), dtype=torch.bool) for value in call.inputs]
        if _keeps_count(call) and bool(wanted[0].all()):
            return [torch.ones((1,) * len(call.inputs[0].shape), dtype=torch.bool)]
        read = _Elements(call.inputs)
        for labels, elements in zip(_labels(call), wanted, strict=True):
            read.mark(labels[elements.expand(labels.shape)])
        dims = self._uniform_dims(call)
        if not dims:
            return read.each()
        if empty:
            return [torch.ones(value.shape, dtype=torch.bool) for value in call.inputs]
        return [elements.any(dims, keepdim=True) for elements in read.each()]

    def couple(self, call: Call, kept: KeepSets) -> None:
        for value in (*call.inputs, *call.outputs):
            if len(value.shape) == len(call.inputs[0].shape):
                kept.keep_all(value, self.literal_dims(call) if self.whole else self._uniform_dims(call))
        if all(kept.is_full(value) for value in (*call.inputs, *call.outputs)):
            return
        sources = torch.cat([_product(kept, value).flatten() for value in call.inputs])
        moved = _Elements(call.inputs)
        for labels, output in zip(_labels(call), call.outputs, strict=True):
            placed = labels >= 0
            _keep_product(kept, output, placed.masked_scatter(placed, sources[labels[placed]]))
            moved.mark(labels[placed & _product(kept, output)])
        for value, elements in zip(call.inputs, moved.each(), strict=True):
            _keep_product(kept, value, elements)

    def _uniform_dims(self, call: Call) -> list[int]:
        """The literal dimensions of which nothing can be said position by position."""
        values = [*call.inputs, *call.outputs]
        rank = len(call.inputs[0].shape)
        varying = {dim for value in values if len(value.shape) == rank for dim in value.varying}
        literal = {dim for dim in self.literal_dims(call) if call.computed or dim in varying}
        return sorted(literal | call.regrouped)


class Permute(Movement):
    """A permutation of dimensions: each is coupled with its new place; facts stay uniform."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        (value,) = call.inputs
        known = facts[value]
        (varies,), (moved,), (fixed,) = (call.run([rep]) for rep in (known.varies, known.value, known.fixed))
        return [Fact(varies, moved, fixed)]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        origin = self._origin(call)
        inverse = sorted(range(len(origin)), key=origin.__getitem__)
        return [wanted[0].permute(inverse)]

    def couple(self, call: Call, kept: KeepSets) -> None:
        for dim, source in enumerate(self._origin(call)):
            kept.couple((call.inputs[0], source), (call.outputs[0], dim))

    def _origin(self, call: Call) -> list[int]:
        """For each dimension of the result, the dimension of the operand that it is."""
        rank = len(call.inputs[0].shape)
        (probe,) = call.run([torch.empty(tuple(range(2, rank + 2)), device="meta")])
        return [size - 2 for size in probe.shape]


class View(Movement):
    """The same elements in another shape: dimensions are taken together and apart, group by group."""

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        (source,), (result,) = call.inputs, call.outputs
        if not source.shape.numel():
            return super().forward(call, facts)
        known = alike_along(facts[source], sorted(call.regrouped))
        parts = (known.varies, known.value, known.fixed)
        varies, value, fixed = (_viewed(part, source.shape, result.shape) for part in parts)
        averages = facts[source].averages and result.shape[-1:] == source.shape[-1:]
        return [Fact(varies, value, fixed, averages)]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        (source,), (result,) = call.inputs, call.outputs
        if not source.shape.numel():
            return super().backward(call, facts, wanted)
        return [any_over(_viewed(wanted[0], result.shape, source.shape), sorted(call.regrouped))]

    def couple(self, call: Call, kept: KeepSets) -> None:
        (source,), (result,) = call.inputs, call.outputs
        if not source.shape.numel():
            super().couple(call, kept)
            return
        kept.keep_all(source, call.regrouped)
        row = column = 0
        for rows, columns in view_groups([source.shape], [result.shape]):
            _tie_group(kept, (source, range(row, rows)), (result, range(column, columns)))
            row, column = rows, columns


class Concatenate(Movement):
    """Operands side by side along one dimension; along the others they are coupled.

    An empty vector may stand beside operands of any rank, as in a cache that has nothing yet.
    """

    def forward(self, call: Call, facts: Facts) -> list[Fact]:
        dim, operands = _cat_dim(call), [facts[value] for value in _side_by_side(call)]
        reps = [rep for operand in operands for rep in (operand.varies, operand.value, operand.fixed)]
        common = broadcast_shapes(*(_resized(rep.shape, dim, 1) for rep in reps))
        shapes = [_resized(common, dim, value.shape[dim]) for value in _side_by_side(call)]
        varies = [f.varies.expand(shape) for f, shape in zip(operands, shapes, strict=True)]
        values = [f.value.expand(shape) for f, shape in zip(operands, shapes, strict=True)]
        fixed = [f.fixed.expand(shape) for f, shape in zip(operands, shapes, strict=True)]
        return [fact(torch.cat(varies, dim), torch.cat(values, dim), torch.cat(fixed, dim))]

    def backward(self, call: Call, facts: Facts, wanted: list[Tensor]) -> list[Tensor]:
        dim = _cat_dim(call)
        joined = _side_by_side(call)
        sizes = [value.shape[dim] for value in joined]
        parts = iter(wanted[0].expand(_resized(wanted[0].shape, dim, sum(sizes))).split(sizes, dim))
        nothing = torch.ones(1, dtype=torch.bool)
        return [next(parts) if value in joined else nothing for value in call.inputs]

    def couple(self, call: Call, kept: KeepSets) -> None:
        dim, (output,) = _cat_dim(call), call.outputs
        start = 0
        for value in _side_by_side(call):
            stop = start + value.shape[dim]
            for other in range(len(output.shape)):
                if other != dim:
                    kept.couple((value, other), (output, other))
            kept.keep(value, dim, kept.of(output, dim)[start:stop])
            own = torch.zeros(output.shape[dim], dtype=torch.bool)
            own[start:stop] = kept.of(value, dim)
            kept.keep(output, dim, own)
            start = stop


def alike_along(known: Fact, dims: list[int]) -> Fact:
    """What all positions along some dimensions have in common; they vary where that is nothing."""
    reps = (known.varies, known.value, known.fixed)
    dims = [dim for dim in dims if any(rep.shape[dim] > 1 for rep in reps)]
    varies, value, fixed = known.varies, known.value, known.fixed
    for dim in dims:
        first = value.narrow(dim, 0, 1)
        varies = (varies | (value != first)).any(dim, keepdim=True)
        value, fixed = first, fixed.all(dim, keepdim=True)
    return fact(varies.expand(broadcast_shapes(varies.shape, value.shape)), value, fixed)


def dim_argument(call: Call) -> list[int]:
    """The dimension that a slice, selection, split or unfolding works along."""
    named = {argument.name: position for position, argument in enumerate(call.op._schema.arguments)}
    name = "dim" if "dim" in named else "dimension"  # as unfold calls it
    dim = call.args[named[name]] if named[name] < len(call.args) else call.kwargs.get(name, 0)
    return [int(dim) % len(call.inputs[0].shape)]


def rolled_dims(call: Call) -> list[int]:
    """The dimensions that a roll turns; all where it names none."""
    rank = len(call.inputs[0].shape)
    dims = call.args[2] if len(call.args) > 2 else []
    return [dim % rank for dim in dims] or list(range(rank))


def padded_dims(call: Call) -> list[int]:
    """The dimensions that a padding really pads."""
    padding = call.args[1]
    rank = len(call.inputs[0].shape)
    pairs = range(len(padding) // 2)
    return [rank - 1 - pair for pair in pairs if call.computed or any(padding[2 * pair : 2 * pair + 2])]


def _keeps_count(call: Call) -> bool:
    """Whether one operand becomes one result with as many elements, as in every view."""
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return False
    return call.inputs[0].shape.numel() == call.outputs[0].shape.numel() > 0


def _cat_dim(call: Call) -> int:
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    return int(dim) % len(call.outputs[0].shape)


def _side_by_side(call: Call) -> list[Value]:
    return [value for value in call.inputs if len(value.shape) == len(call.outputs[0].shape)]


def _resized(shape: torch.Size, dim: int, size: int) -> torch.Size:
    """A shape with one dimension of another size."""
    return torch.Size((*shape[:dim], size, *shape[dim + 1 :]))


def _labels(call: Call) -> list[Tensor]:
    """For each element of each result, the number of the operand element it is; -1 for none."""
    sources, start = [], 1
    for value in call.inputs:
        # float64 holds every count exactly, and every movement supports it
        sources.append(
            torch.arange(start, start + value.shape.numel(), dtype=torch.float64).view(value.shape)
        )
        start += value.shape.numel()
    return [labels.long() - 1 for labels in call.run(sources)]


class _Elements:
    """Marked elements of several values that are numbered through."""

    def __init__(self, values: list[Value]) -> None:
        self._values = values
        self._marked = torch.zeros(sum(value.shape.numel() for value in values), dtype=torch.bool)

    def mark(self, labels: Tensor) -> None:
        self._marked[labels[labels >= 0]] = True

    def each(self) -> list[Tensor]:
        parts = self._marked.split([value.shape.numel() for value in self._values])
        return [part.view(value.shape) for part, value in zip(parts, self._values, strict=True)]


def _viewed(part: Tensor, source: torch.Size, result: torch.Size) -> Tensor:
    """What broadcasts to a shape, viewed as another one; dimensions that are alike stay so together."""
    full, shape = list(part.shape), []
    row = column = 0
    for rows, columns in view_groups([source], [result]):
        if part.shape[row:rows].numel() == 1:
            shape += [1] * (columns - column)
        else:
            full[row:rows] = source[row:rows]
            shape += result[column:columns]
        row, column = rows, columns
    return part.expand(full).reshape(shape)


_Side = tuple[Value, range]
"""A value and some of its dimensions."""


def _tie_group(kept: KeepSets, one: _Side, other: _Side) -> None:
    """Tie dimensions to those that a view makes of them: whole rectangles on both sides."""
    for (value, dims), (to, places) in ((one, other), (other, one)):
        elements = _product(kept, value, dims)
        _keep_product(kept, to, elements.view([to.shape[dim] for dim in places]), places)


def _product(kept: KeepSets, value: Value, dims: Sequence[int] | None = None) -> Tensor:
    """The elements all of whose indices are kept, along some dimensions (all by default)."""
    dims = range(len(value.shape)) if dims is None else dims
    elements = torch.ones([value.shape[dim] for dim in dims], dtype=torch.bool)
    for place, dim in enumerate(dims):
        shape = [1] * len(dims)
        shape[place] = -1
        elements &= kept.of(value, dim).view(shape)
    return elements


def _keep_product(kept: KeepSets, value: Value, elements: Tensor, dims: Sequence[int] | None = None) -> None:
    """Keep every index that one of the elements has, along some dimensions (all by default)."""
    dims = range(len(value.shape)) if dims is None else dims
    for place, dim in enumerate(dims):
        others = [d for d in range(len(dims)) if d != place]
        kept.keep(value, dim, elements.any(others) if others else elements)
