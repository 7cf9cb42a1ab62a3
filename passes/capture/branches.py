"""Which branches a trace may take, although what they depend on is not the same for every input."""

from __future__ import annotations

import ast
import functools
import linecache
import operator
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import fx

_METADATA = frozenset(
    {"dtype", "device", "layout", "type", "is_cuda", "is_mps", "is_sparse", "is_nested", "requires_grad"}
)


def is_metadata(node: fx.Node) -> bool:
    """Whether a value follows from data types and devices alone, which no size of the input changes."""
    if node.target is getattr and node.args[1] in _METADATA:
        return True
    if node.target in (torch.is_floating_point, torch.is_complex):
        return True
    sources = node.all_input_nodes
    return bool(sources) and node.op == "call_function" and all(is_metadata(source) for source in sources)


def guards_an_error() -> bool:
    """Whether the branch being taken is an ``assert``, or an ``if`` that does nothing but raise.

    A call that takes the other way has no result, so there is nothing to be wrong about.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_tracer(frame):
        frame = frame.f_back
    return frame.f_lineno in _lines_that_guard_errors(frame.f_code.co_filename)


@functools.lru_cache(maxsize=64)
def _lines_that_guard_errors(filename: str) -> frozenset[int]:
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return frozenset()
    lines: set[int] = set()
    for part in ast.walk(tree):
        raises = isinstance(part, ast.If) and not part.orelse and isinstance(part.body[-1], ast.Raise)
        if isinstance(part, ast.Assert) or raises:
            test = part.test  # type: ignore[attr-defined]
            lines.update(range(part.lineno, (test.end_lineno or part.lineno) + 1))  # type: ignore[attr-defined]
    return frozenset(lines)


_COMPARISONS = frozenset({operator.eq, operator.ne, operator.gt, operator.ge, operator.lt, operator.le})


def asks_for_more_than_one(node: fx.Node, outcome: bool) -> bool:
    """Whether a condition compares a size with a number so that all sizes from 2 on have one outcome."""
    if node.target not in _COMPARISONS or len(node.args) != 2:
        return False
    size, number = node.args
    if not isinstance(size, fx.Node) or size.target != "size" or not isinstance(number, int):
        return False
    compare: Any = node.target
    return bool(compare(2, number) == compare(sys.maxsize, number) == outcome)


def relates_sizes(node: fx.Node, numbers: Mapping[fx.Node, Sequence[Any]]) -> bool:
    """Whether a condition compares sums of sizes whose difference is the same in every example.

    Two sizes of one origin, such as the length of the queries and that of the keys, keep their relation.

    Args:
        node: the condition.
        numbers: the values in each example of the nodes that are no tensors.
    """
    if node.target not in _COMPARISONS or len(node.args) != 2 or not all(map(_is_sum_of_sizes, node.args)):
        return False
    count = len(numbers[node])
    one, other = (numbers[side] if isinstance(side, fx.Node) else [side] * count for side in node.args)
    return len({a - b for a, b in zip(one, other, strict=True)}) == 1


def _is_sum_of_sizes(side: Any) -> bool:
    if not isinstance(side, fx.Node):
        return isinstance(side, int)
    sums = side.target in (operator.add, operator.sub) and all(map(_is_sum_of_sizes, side.args))
    return sums or side.target == "size"


def _is_tracer(frame: FrameType) -> bool:
    """Whether a frame is fx's or the tracer's own, and not the forward that is traced."""
    return str(frame.f_globals.get("__name__", "")).startswith(("torch.fx", "sparsefx.passes."))
