"""Operators that write in place, and which calls of a graph write."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.node import has_side_effect
from torch.utils import _pytree as pytree

NAMES = (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
)
"""Python's augmented assignments, by their names in :mod:`operator`."""


def _called(name: str) -> Callable[[Any, Any], Any]:
    """An augmented assignment as a function of this module.

    fx writes ``operator.iadd(n, 1)`` as the statement ``n += 1``, after which the name of the *operand*
    stands for the new value too. That is right for tensors, and wrong for numbers and tuples.
    """
    operation = getattr(operator, name)

    def assign(target: Any, value: Any) -> Any:
        return operation(target, value)

    assign.__name__ = assign.__qualname__ = name
    assign.__doc__ = f"``operator.{name}`` of something that may be a tensor or a number."
    return has_side_effect(assign)  # fx's dead-code elimination keeps what nothing reads


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {name: _called(name) for name in NAMES}
"""These as functions that a graph may call on values of an unknown type."""
globals().update(FUNCTIONS)  # a pickled graph finds them by their names

FUNCTIONAL: dict[Any, Callable[[Any, Any], Any]] = {
    assignment: getattr(operator, name[1:], None) or getattr(operator, f"{name[1:]}_")
    for name in NAMES
    for assignment in (getattr(operator, name), FUNCTIONS[name])
}
"""The operator that each augmented assignment falls back on, where its operand cannot change."""

_WRITING = frozenset({*NAMES, *(f"__{name}__" for name in NAMES), "setitem", "__setitem__", "delitem"})
_LOOKS_LIKE_IT = frozenset({"and_", "or_", "not_", "is_", "requires_grad_"})


def written(kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that a call of a function or method writes, as far as its name tells."""
    if kind not in ("call_function", "call_method"):
        return []
    name = getattr(target, "__name__", str(target))
    out = pytree.tree_leaves(kwargs["out"]) if kwargs.get("out") is not None else []
    writes = name in _WRITING or (name.endswith("_") and name not in _LOOKS_LIKE_IT and name[-2:] != "__")
    first = [*args[:1], kwargs.get("input")][0]
    return [*out, first] if writes or kwargs.get("inplace") else out


def writes(node: fx.Node) -> bool:
    """Whether a node may write to its operands; a module's call is not looked into."""
    return bool(written(node.op, node.target, node.args, node.kwargs))
