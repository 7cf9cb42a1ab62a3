"""Dead slices: which indices of which dimensions of which values can be removed together.

Every dimension of every value has a bool vector, True where the index is kept. It starts from what
is live. Then each operation couples its operands and results: an elementwise operation keeps equal
indices, a contraction equal ones on both operands, a view whole rectangles. Couplings can only keep
more. The smallest keep set that satisfies all of them is the greatest removal.
``coupling.py`` has a worked example of four channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sparsefx.passes.graph.program import Value

READ = "read"
"""The cause of what is kept for its own sake: some output depends on it."""


class KeepSets:
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
        """What is kept from now on is kept for this reason: a call whose coupling asks for it, or words."""
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

    def couple(self, one: tuple[Value, int], other: tuple[Value, int]) -> None:
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
