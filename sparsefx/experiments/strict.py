"""Plain JSON data into frozen dataclasses: what does not fit exactly is an error that says where."""

from __future__ import annotations

import math
import sys
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sparsefx.errors import LedgerError


def read(kind: Any, value: Any, where: str) -> Any:
    """Read a value as a type.

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
        return _read_record(kind, value, where)
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return None if value is None else read(arguments[0], value, where)
    if get_origin(kind) is tuple:
        items = _demand(list, value, where)
        return tuple(read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if get_origin(kind) is dict:
        entries = _demand(dict, value, where)
        return {key: read(arguments[1], entry, f"{where}.{key}") for key, entry in entries.items()}
    return value if kind is Any else _read_scalar(kind, value, where)


def _read_record(kind: Any, value: Any, where: str) -> Any:
    entries = _demand(dict, value, where)
    known = {field.name: field for field in fields(kind)}
    required = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - entries.keys()):
        raise LedgerError(f"{where} lacks {', '.join(missing)}")
    if strange := sorted(entries.keys() - known.keys()):
        raise LedgerError(f"{where} has the unknown {', '.join(strange)}")
    types = get_type_hints(kind)
    return kind(**{name: read(types[name], entry, f"{where}.{name}") for name, entry in entries.items()})


def _read_scalar(kind: type, value: Any, where: str) -> Any:
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
