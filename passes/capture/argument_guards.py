"""Checks in a graph that refuse arguments which it was not traced for: other lengths, other plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from sparsefx.passes.capture.example_proxy import ExampleProxy


def require_length(value: Any, length: int, name: str) -> None:
    """Refuse a list, tuple or dict of another length than the one that a graph was traced with.

    Raises:
        TypeError: the length differs.
    """
    if not traced_again(require_length, value, length, name) and len(value) != length:
        raise TypeError(f"argument {name!r} was traced with {length} entries; got {len(value)}")


def require_default(
    value: Any, default: Any, name: str, remedy: str = "Give it such a value among the example inputs"
) -> None:
    """Refuse a value other than the one that a graph was traced with.

    Raises:
        TypeError: the value differs.
    """
    if traced_again(require_default, value, default, name) or value is default:
        return
    if type(value) is not type(default) or value != default:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"argument {name!r} was traced as {default!r} and cannot change; got {got}. {remedy}")


def traced_again(check: Callable[..., None], value: Any, *expected: Any) -> bool:
    """Whether the graph with a check is itself traced, say to unpickle it; the new graph checks as well."""
    if not isinstance(value, fx.Proxy):
        return False
    if not isinstance(value, ExampleProxy):  # along examples, the new graph's own arguments are checked
        value.tracer.create_proxy("call_function", check, (value, *expected), {})
    return True
