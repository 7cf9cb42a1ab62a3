"""Dead slices: which indices of which dimensions of which values can be removed together.

Every dimension of every value has a bool vector, True where the index is kept. It starts as what
is live; each operation then ties its operands and results (an elementwise operation keeps equal
indices, a contraction equal ones on both operands, a view whole rectangles), which can only keep
more. The smallest kept set that satisfies every tie is what must stay: the greatest removal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sparsefx.passes.graph.program import Call, Program, Value

READ = "read"
"""The cause of what is kept for its own sake: some output depends on it."""


class Kept:
    """The kept indices of every dimension of every value; indices are only ever added.

    Args:
        values: the values.
        round_groups: give the groups of convolutions widths that kernels are made for, see
            :meth:`group_width`.
    """

    def __init__(self, values: Iterable[Value], round_groups: bool = False) -> None:
        self._round_groups = round_groups
        values = list(values)
        self._kept = {value: [torch.zeros(n, dtype=torch.bool) for n in value.shape] for value in values}
        self._causes = {value: [torch.zeros(n, dtype=torch.int32) for n in value.shape] for value in values}
        self._because: list[object] = [READ]
        self._changed: dict[Value, None] = {}
        self._by_row: dict[Value, Tensor] = {}

    def __getitem__(self, value: Value) -> list[Tensor]:
        """One bool vector for each dimension of a value."""
        return self._kept[value]

    def keep(self, value: Value, dim: int, indices: Tensor) -> None:
        """Keep more indices (bool vector, broadcastable to the dimension)."""
        dim %= len(value.shape)
        old = self._kept[value][dim]
        new = old | indices
        if not torch.equal(old, new):
            self._causes[value][dim][new & ~old] = len(self._because) - 1
            self._kept[value][dim] = new
            self._changed[value] = None

    def because(self, cause: object) -> None:
        """What is kept from now on is kept for this reason: a call whose tie asks for it, or words."""
        self._because.append(cause)

    def cause(self, value: Value, dim: int, index: int) -> object:
        """Why an index was kept first; ``READ`` if something needs its elements."""
        return self._because[int(self._causes[value][dim][index])]

    def select_by_row(self, value: Value, columns: Tensor) -> None:
        """Keep other columns in each row of a matrix, equally many: bool, (rows, columns)."""
        self._by_row[value] = columns

    def cut(self, value: Value, tensor: Tensor) -> Tensor:
        """What is kept of a tensor of the value's shape."""
        if value in self._by_row:
            columns = self._by_row[value].to(tensor.device)
            width = self.shape(value)[1]
            places = torch.argsort((~columns).to(torch.int8), dim=1, stable=True)[:, :width]
            rows = torch.arange(len(places), device=tensor.device)[:, None]
            tensor = tensor[rows, places]
            dims = [dim for dim in range(tensor.dim()) if dim != 1]
        else:
            dims = list(range(tensor.dim()))
        for dim in dims:
            indices = self.of(value, dim)
            if not bool(indices.all()):
                tensor = tensor.index_select(dim, indices.nonzero().flatten().to(tensor.device))
        return tensor

    def group_width(self, needed: int, full: int) -> int:
        """How many channels each group of a convolution keeps: all that are needed, and at least one.

        Rounded, that is a power of two, from 8 on a multiple of 8, or the full width: between them a grouped
        convolution takes up to three times as long (``docs/results.md``).
        """
        width = max(needed, 1)
        if not self._round_groups:
            return width
        return min(full, 1 << (width - 1).bit_length() if width < 8 else -(-width // 8) * 8)

    def take_changed(self) -> list[Value]:
        """The values of which more is kept than when this was last asked."""
        changed, self._changed = list(self._changed), {}
        return changed

    def keep_all(self, value: Value, dims: Iterable[int] | None = None) -> None:
        """Keep every index of some dimensions (of all by default)."""
        for dim in range(len(value.shape)) if dims is None else dims:
            self.keep(value, dim, torch.ones((), dtype=torch.bool))

    def tie(self, one: tuple[Value, int], other: tuple[Value, int]) -> None:
        """Keep the same indices on both sides."""
        both = self.of(*one) | self.of(*other)
        self.keep(*one, both)
        self.keep(*other, both)

    def of(self, value: Value, dim: int) -> Tensor:
        """The kept indices of one dimension."""
        return self._kept[value][dim % len(value.shape)]

    def shape(self, value: Value) -> torch.Size:
        """The value's shape once everything else is removed."""
        sizes = [int(indices.sum()) for indices in self._kept[value]]
        if value in self._by_row:
            sizes[1] = int(self._by_row[value].sum(1).max())
        return torch.Size(sizes)

    def is_full(self, value: Value) -> bool:
        """Whether nothing of a value is removed."""
        return self.shape(value) == value.shape


def find_kept(
    program: Program,
    live: Mapping[Value, Tensor],
    *,
    pinned: Iterable[tuple[Value, int | None]] = (),
    align: int = 1,
    round_groups: bool = False,
) -> Kept:
    """The least that must stay of every value.

    Args:
        program: the recorded graph.
        live: the live elements of each value.
        pinned: dimensions of values that must stay whole (None: all of the value's), beside those of
            the graph's inputs and outputs.
        align: widths of convolutions and linear layers are rounded up to a multiple of this with
            removable indices, where there are enough.
        round_groups: give the groups of convolutions convenient widths (:meth:`Kept.group_width`).
    """
    kept = Kept(live, round_groups)
    for value, elements in live.items():
        for dim in range(len(value.shape)):
            others = [d for d in range(len(value.shape)) if d != dim]
            kept.keep(value, dim, elements.any(others) if others else elements)
        kept.keep_all(value, value.varying)
    kept.because("the model takes or returns them")
    for value in (*program.inputs, *program.outputs):
        kept.keep_all(value)
    kept.because("a size that cannot be rewritten counts them")
    for value, pinned_dim in pinned:
        kept.keep_all(value, None if pinned_dim is None else [pinned_dim])
    ties = _Ties(program, kept)
    ties.hold(program.calls)
    _keep_one_of_each(program, kept, ties)
    if align > 1:
        _align(program, kept, ties, align)
    return kept


class _Ties:
    """Every operation's tie, held again wherever one of its values changes."""

    def __init__(self, program: Program, kept: Kept) -> None:
        self._kept = kept
        self._touching: dict[Value, list[Call]] = {}
        for call in program.calls:
            for value in {*call.inputs, *call.outputs}:
                self._touching.setdefault(value, []).append(call)

    def hold(self, calls: Iterable[Call] = ()) -> None:
        """Keep more until every tie holds, beginning with some calls and with what changed.

        A call comes again only after an index more was kept of one of its values, and none is given up: it is
        tied at most once more than its values have indices.
        """
        from sparsefx.passes.analysis.ops import operation_of

        waiting = dict.fromkeys(calls)
        while True:
            for value in self._kept.take_changed():
                waiting.update(dict.fromkeys(self._touching.get(value, ())))
            if not waiting:
                return
            call = next(iter(waiting))
            del waiting[call]
            self._kept.because(call)
            operation_of(call).tie(call, self._kept)


def _keep_one_of_each(program: Program, kept: Kept, ties: _Ties) -> None:
    """Keep an index of a dimension that would vanish: no tensor may lose its last channel."""
    for value in program.values():
        for dim, size in enumerate(value.shape):
            if size and not bool(kept.of(value, dim).any()):
                kept.because("no tensor may lose its last channel")
                kept.keep(value, dim, torch.arange(size) == 0)
                ties.hold()


def _align(program: Program, kept: Kept, ties: _Ties, align: int) -> None:
    """Keep removable indices of the layers' widths until each is a multiple, or full."""
    widths = [(value, dim) for value in program.constants if len(value.shape) > 1 for dim in (0, 1)]
    missing = True
    while missing:  # each turn but the last keeps more
        missing = False
        for value, dim in widths:
            indices = kept.of(value, dim)
            wanted = min(len(indices), -(-int(indices.sum()) // align) * align) - int(indices.sum())
            if wanted:
                kept.because("align= rounds the width up")
                removed = (~indices).nonzero().flatten()[:wanted]
                kept.keep(value, dim, torch.zeros_like(indices).index_fill(0, removed, True))
                ties.hold()
                missing = True
