"""Results that are kept while they fit into memory set apart for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar("Result")


class ByteBoundedCache(Generic[Result]):
    """A function whose results are kept; those that were not used for longest go first.

    Args:
        make: makes a result of its arguments, which tell results apart.
        size: bytes that a result takes.
        most: bytes for all; the last result is kept even if it takes more.
    """

    def __init__(self, make: Callable[..., Result], size: Callable[[Result], int], most: int) -> None:
        self._make, self._size, self._most = make, size, most
        self._lock = Lock()
        self.cache_clear()

    def __call__(self, *arguments: Hashable) -> Result:
        """The result for these arguments."""
        with self._lock:
            cached = self._results.get(arguments)
            if cached is not None:
                self._results.move_to_end(arguments)
                return cached[0]
        made = self._make(*arguments)  # other threads may go on, and one may make the same
        size = self._size(made)
        with self._lock:
            _, replaced = self._results.pop(arguments, (made, 0))
            self._results[arguments] = made, size
            self._bytes += size - replaced
            while self._bytes > self._most and len(self._results) > 1:
                _, (_, dropped) = self._results.popitem(last=False)
                self._bytes -= dropped
        return made

    def cache_clear(self) -> None:
        """Forget all results."""
        self._results: OrderedDict[tuple[Hashable, ...], tuple[Result, int]] = OrderedDict()
        self._bytes = 0
