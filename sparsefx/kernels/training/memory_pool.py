"""Memory that steps of training use in turn: the operating system takes long to give out new pages."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import weakref
from threading import Lock

import torch
from torch import Tensor

_MOST = 6  # pieces that wait


class MemoryPool:
    """Pieces of memory that were given back."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lock = Lock()

    def take(self, size: int) -> Tensor:
        """At least so many bytes, uint8 ``[bytes]``, with anything in them."""
        with self._lock:
            fitting = [piece for piece in self._free if size <= piece.numel() <= 2 * size + 4096]
            if fitting:
                chosen = min(fitting, key=Tensor.numel)
                self._free = [piece for piece in self._free if piece is not chosen]
                return chosen
        with torch.inference_mode(False):  # a piece that a validation has made is trained with later
            return torch.empty(size, dtype=torch.uint8, device="cpu")

    def give_back(self, piece: Tensor) -> None:
        """Let others use a piece: uint8 ``[bytes]``."""
        with self._lock:
            self._free = [*self._free, piece][-_MOST:]

    def clear(self) -> None:
        """Keep no piece."""
        with self._lock:
            self._free = []

    def lend(self, size: int) -> Tensor:
        """The same, uint8 ``[bytes]``, for as long as anything holds the tensor, which autograd may do."""
        piece = self.take(size)
        lent = piece[:]
        weakref.finalize(lent, self.give_back, piece).atexit = False
        return lent


POOL = MemoryPool()


def return_free_memory(*, circles: bool = False) -> None:
    """Give what was freed back to the operating system, where the C library can: it would keep it for long.

    Making a plan, or recording a graph, needs much memory for a moment and in small pieces.

    Args:
        circles: find first what only refers to itself, as the graphs of a model that is no longer used do.
    """
    if circles:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
