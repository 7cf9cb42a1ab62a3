"""Where the values of a plan are kept: memory of values that nothing reads any more is used again."""

from __future__ import annotations

from collections.abc import Sequence

from sparsefx.kernels.codegen.vectors import VECTOR_BYTES
from sparsefx.kernels.planner.steps import Address, Convolve, LaneValue, Step


def place(steps: Sequence[Step]) -> int:
    """Give every value, and every step's scratch memory, an address.

    Returns:
        Bytes of memory in all.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    values: dict[int, LaneValue] = {}
    for index, step in enumerate(steps):
        for value in (*step.reads, *([step.writes] if step.writes else [])):
            values[id(value)] = value
            first.setdefault(id(value), index)
            last[id(value)] = index
    used: list[tuple[int, int, int]] = []  # last step, start, end
    total = 0
    for index, step in enumerate(steps):
        used = [block for block in used if block[0] >= index]
        for key in [key for key, begun in first.items() if begun == index]:
            start = _free(used, values[key].layout.bytes)
            values[key].address = Address("memory", start)
            used.append((last[key], start, start + values[key].layout.bytes))
        if isinstance(step, Convolve) and step.scratch:
            start = _free(used, step.scratch)
            step.room = Address("memory", start)
            used.append((index, start, start + step.scratch))
        total = max([total, *(end for _, _, end in used)])
    return total


def _free(used: Sequence[tuple[int, int, int]], size: int) -> int:
    """The first place with so much room."""
    start = 0
    for _, begun, end in sorted(used, key=lambda block: block[1]):
        if begun - start >= size:
            break
        start = max(start, end)
    return start + -start % VECTOR_BYTES
