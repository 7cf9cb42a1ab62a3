"""Memory that is given out while a plan is made, and used again when it is given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sparsefx.kernels.codegen.vectors import VECTOR_BYTES


class Arena:
    """Offsets in one piece of memory.

    Attributes:
        bytes: of memory in all, so far.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._used: list[tuple[int, int]] = []

    def take(self, size: int) -> int:
        """The offset of so many bytes."""
        size = max(VECTOR_BYTES, size + -size % VECTOR_BYTES)
        start = 0
        for begun, end in sorted(self._used):
            if begun - start >= size:
                break
            start = max(start, end)
        self._used.append((start, start + size))
        self.bytes = max(self.bytes, start + size)
        return start

    def give_back(self, start: int) -> None:
        """Let others use what begins there."""
        self._used.remove(next(piece for piece in self._used if piece[0] == start))

    @contextmanager
    def borrowed(self, size: int) -> Iterator[int]:
        """The offset of so many bytes, for a while."""
        start = self.take(size)
        yield start
        self.give_back(start)
