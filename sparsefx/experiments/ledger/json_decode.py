"""Plain JSON data into frozen dataclasses: what does not fit exactly is an error that says where."""

from __future__ import annotations

import math
import sys
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sparsefx.errors import LedgerError


def decode(kind: Any, value: Any, where: str) -> Any:
    """Decode a value as a type.

    Args:
        kind: ``float``, ``int``, ``str``, ``bool``, ``Any``, a dataclass, or ``X | None``,
            ``tuple[X, ...]`` and ``dict[str, X]`` of these.
        value: what JSON gave: None, a bool, number, string, list or dict.
        where: what to call the value in an error.

    Returns:
        The value; a whole number as a float where a float is due, a list as a tuple, a dict as a dataclass.

    Raises:
        LedgerError: the value is of another type, a number is not finite, or a dataclass's entries are
            not its fields.
    """
    if is_dataclass(kind):
        return _decode_record(kind, value, where)
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return None if value is None else decode(arguments[0], value, where)
    if get_origin(kind) is tuple:
        items = _demand(list, value, where)
        return tuple(decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if get_origin(kind) is dict:
        entries = _demand(dict, value, where)
        return {key: decode(arguments[1], entry, f"{where}.{key}") for key, entry in entries.items()}
    return value if kind is Any else _decode_scalar(kind, value, where)


def _decode_record(kind: Any, value: Any, where: str) -> Any:
    entries = _demand(dict, value, where)
    types, required = _fields(kind)
    if missing := sorted(required - entries.keys()):
        raise LedgerError(f"{where} lacks {', '.join(missing)}")
    if strange := sorted(entries.keys() - types.keys()):
        raise LedgerError(f"{where} has the unknown {', '.join(strange)}")
    return kind(**{name: decode(types[name], entry, f"{where}.{name}") for name, entry in entries.items()})


@cache
def _fields(kind: type) -> tuple[dict[str, Any], set[str]]:
    """The types of a dataclass's fields by name, and the names of those without a default."""
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    return get_type_hints(kind), required


def _decode_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    _demand(kind, value, where)
    if kind is float and not math.isfinite(value):
        raise LedgerError(f"{where} is {value!r}, not a finite number")
    return value


def _demand(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise LedgerError(f"{where} is {value!r:.60}, not a {kind.__name__}")
    return value
