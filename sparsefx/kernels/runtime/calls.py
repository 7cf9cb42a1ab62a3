"""A plan's kernels and their arguments, as one array that machine code walks through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.kernels.codegen.dispatch_loop import HEAD, STEP
from sparsefx.kernels.planner.steps import Address, Argument, KernelCall
from sparsefx.kernels.runtime import native
from sparsefx.kernels.runtime.threads import team_functions


class Calls:
    """Kernels to call one after the other.

    Args:
        calls: kernels with their arguments.
        threads: that will walk through together.
    """

    def __init__(self, calls: Iterable[KernelCall], threads: int) -> None:
        self._constants: list[NDArray[Any]] = []
        listed = list(calls)
        cells: list[Argument] = [*team_functions(threads), len(listed)]
        start = HEAD + STEP * len(listed)
        tail: list[Argument] = []
        for kernel, arguments in listed:
            cells += [native.compiled(kernel.text), Address("cells", 8 * (start + len(tail)))]
            tail += [arguments[name] for name in kernel.arguments]
        cells += tail
        self._cells = np.array([self._number(cell) for cell in cells], np.int64)
        known = [(index, cell) for index, cell in enumerate(cells) if isinstance(cell, Address)]
        self._patched = np.array([index for index, _ in known])
        self._bases = np.array([_base(address) for _, address in known])

    @property
    def bytes(self) -> int:
        """Bytes that it keeps."""
        return self._cells.nbytes + sum(constant.nbytes for constant in self._constants)

    def at(self, memory: int, tensors: NDArray[np.int64]) -> NDArray[np.int64]:
        """The array, for memory and tensors at these addresses; it must stay where it is."""
        cells = self._cells.copy()
        bases = np.concatenate([np.array([cells.ctypes.data, memory], np.int64), tensors])
        cells[self._patched] += bases[self._bases]
        return cells

    def _number(self, cell: Argument) -> int:
        if isinstance(cell, Address):
            return cell.offset
        if isinstance(cell, np.ndarray):
            kept = np.ascontiguousarray(cell)
            self._constants.append(kept)
            return int(kept.ctypes.data)
        return int(cell)


def _base(address: Address) -> int:
    return {"cells": 0, "memory": 1}[address.base] if isinstance(address.base, str) else 2 + address.base
