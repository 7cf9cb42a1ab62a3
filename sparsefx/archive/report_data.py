"""Reports from the plain data that their ``as_dict`` gives."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from sparsefx.passes.serialize.plain_values import DataError
from sparsefx.report.export_report import ExportReport

_TOTALS = ("channels_before", "channels_after")


def read_report(data: Any) -> ExportReport:
    """The report of an export that plain data describes.

    Raises:
        DataError: it describes none.
    """
    if type(data) is not dict:
        raise DataError("the report is not an object")
    report: ExportReport = _build(ExportReport, {k: v for k, v in data.items() if k not in _TOTALS})
    return report


def _build(kind: Any, data: Any) -> Any:
    """Data as a dataclass, a tuple, an optional or a plain value."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), data)
    if origin in (types.UnionType, typing.Union):
        (present,) = (argument for argument in arguments if argument is not type(None))
        return None if data is None else _build(present, data)
    if origin is tuple and type(data) in (list, tuple):
        return tuple(_build(arguments[0], item) for item in data)
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise DataError(f"the report has a {type(data).__name__} where a {kind} belongs")
    return data


def _build_dataclass(kind: type, data: Any) -> Any:
    hints = _hints(kind)
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if type(data) is not dict or not required <= data.keys() <= hints.keys():
        raise DataError(f"the report is no {kind.__name__}")
    return kind(**{name: _build(hints[name], value) for name, value in data.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
