"""Which dimensions a view takes together and apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def view_groups(sources: Sequence[torch.Size], results: Sequence[torch.Size]) -> list[tuple[int, int]]:
    """Where the groups of dimensions end that a view takes together, in all of some runs at once.

    ``(2, 3, 20)`` as ``(6, 4, 5)`` has two: the first two dimensions become one, the last one two.

    Args:
        sources: the shape before the view, in each run; none is empty.
        results: the shape after the view, in each run.

    Returns:
        For each group, up to which dimension of the source and of the result it goes.
    """
    ends, rows, columns = [], 0, 0
    while rows < len(sources[0]) or columns < len(results[0]):
        before, after = ([1] * len(sources) for _ in range(2))
        start = (rows, columns)
        while (rows, columns) == start or before != after:  # each turn takes a dimension more, or ends
            fewer = any(one < other for one, other in zip(before, after, strict=True))
            more = any(one > other for one, other in zip(before, after, strict=True))
            first = (rows, columns) == start
            if rows < len(sources[0]) and (fewer or first or columns == len(results[0])):
                before = [size * shape[rows] for size, shape in zip(before, sources, strict=True)]
                rows += 1
            if columns < len(results[0]) and (more or first or rows == len(sources[0])):
                after = [size * shape[columns] for size, shape in zip(after, results, strict=True)]
                columns += 1
            if rows == len(sources[0]) and columns == len(results[0]):
                break
        ends.append((rows, columns))
    return ends
