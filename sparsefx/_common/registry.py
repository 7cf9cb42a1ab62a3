"""Parts of a method by name or as a function of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sparsefx.errors import ArgumentError, unknown_name

_Part = TypeVar("_Part", bound=Callable[..., Any])


def resolve(role: str, part: str | _Part, table: Mapping[str, _Part]) -> _Part:
    """A registered name's function, or the callable itself.

    Raises:
        ArgumentError: the name is not registered, or it is neither a name nor a callable.
    """
    if isinstance(part, str):
        if part not in table:
            raise unknown_name(role, part, table)
        return table[part]
    if not callable(part):
        raise ArgumentError(f"{role}={part!r} is neither a name ({', '.join(table)}) nor a callable")
    return part


def described(part: Any) -> str:
    """A part in a line: functions by name, of a dataclass what is not its default."""
    if isinstance(part, (tuple, list)):
        return f"[{', '.join(map(described, part))}]"
    if dataclasses.is_dataclass(part) and not isinstance(part, type) and not hasattr(part, "__name__"):
        fields = [(field, getattr(part, field.name)) for field in dataclasses.fields(part)]
        told = [f"{f.name}={described(value)}" for f, value in fields if value != f.default]
        return f"{type(part).__name__}({', '.join(told)})"
    return str(part.__name__) if hasattr(part, "__name__") else repr(part)
