"""Values of a graph's arguments as plain data (what JSON holds), and back, trusting nothing.

None, bool, int, str, finite floats and lists stand for themselves; anything else is an object with one
key that says what it is: ``{"tuple": [1, 2]}``, ``{"node": "relu"}``, ``{"dtype": "float32"}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import fx

MAX_DEPTH = 24
_INTEGERS = range(-(2**63), 2**64)
_DEVICE = re.compile(r"[a-z]{1,16}(:[0-9]{1,3})?")
T = TypeVar("T")


class DataError(ValueError):
    """Plain data that does not say what it should, or a value that plain data cannot say."""


def expect(value: Any, kind: type[T], what: str) -> T:
    """A value of exactly a type.

    Raises:
        DataError: it is of another type.
    """
    if type(value) is not kind:
        raise DataError(f"{what} is of type {type(value).__name__}, not {kind.__name__}")
    return value


def fields(
    data: Any, what: str, required: Mapping[str, type], optional: Mapping[str, type]
) -> dict[str, Any]:
    """An object with the required keys and perhaps the optional ones, each of its type, and no others.

    Raises:
        DataError: a key is missing or unknown, or its value is of another type.
    """
    entries = expect(data, dict, what)
    for key in required:
        if key not in entries:
            raise DataError(f"{what} has no {key!r}")
    kinds = {**optional, **required}
    for key, value in entries.items():
        if key not in kinds:
            raise DataError(f"{what} has an unknown key {key[:80]!r}")
        expect(value, kinds[key], f"{key!r} of {what}")
    return entries


def encode_value(value: Any) -> Any:
    """A value as plain data.

    Raises:
        DataError: plain data cannot hold it.
    """
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and value in _INTEGERS:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [encode_value(item) for item in value]}
    if isinstance(value, list):
        return [encode_value(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode_value(key), encode_value(item)] for key, item in value.items()]}
    return _encode_tagged(value)


def _encode_tagged(value: Any) -> dict[str, Any]:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if type(value) is slice:
        return {"slice": [encode_value(part) for part in (value.start, value.stop, value.step)]}
    if type(value) is complex:
        return {"complex": [encode_value(value.real), encode_value(value.imag)]}
    if value is Ellipsis:
        return {"ellipsis": None}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, constants in _CONSTANTS.items():
        for name, constant in constants.items():
            if value is constant:
                return {kind: name}
    raise DataError(f"a value of type {type(value).__qualname__} cannot be saved: {str(value)[:80]}")


def decode_value(data: Any, nodes: Mapping[str, fx.Node] | None = None, depth: int = 0) -> Any:
    """The value that plain data stands for.

    Args:
        data: what :func:`encode_value` made, or anything else.
        nodes: the nodes that it may refer to, by name.
        depth: how many containers it is in.

    Raises:
        DataError: it is nothing that :func:`encode_value` makes.
    """
    if depth > MAX_DEPTH:
        raise DataError(f"values are nested more than {MAX_DEPTH} deep")
    if data is None or type(data) in (bool, str, float):
        return data
    if type(data) is int:
        if data not in _INTEGERS:
            raise DataError("an integer does not fit 64 bits")
        return data
    if type(data) is list:
        return [decode_value(item, nodes, depth + 1) for item in data]
    if type(data) is not dict or len(data) != 1:
        raise DataError("a value is neither plain nor an object with one key")
    ((kind, content),) = data.items()
    if kind == "node":
        return _node(content, nodes or {})
    if kind not in _DECODERS:
        raise DataError(f"a value is of an unknown kind {kind[:80]!r}")
    return _DECODERS[kind](content, lambda item: decode_value(item, nodes, depth + 1))


_Decode = Callable[[Any], Any]


def _node(name: Any, nodes: Mapping[str, fx.Node]) -> fx.Node:
    found = nodes.get(expect(name, str, "a reference to a node"))
    if found is None:
        raise DataError(f"node {name[:80]!r} is used before it is defined, or does not exist")
    return found


def _sequence(content: Any, decode: _Decode, length: int | None = None) -> tuple[Any, ...]:
    items = expect(content, list, "a sequence")
    if length is not None and len(items) != length:
        raise DataError(f"a sequence has {len(items)} items, not {length}")
    return tuple(decode(item) for item in items)


def _float(content: Any, decode: _Decode) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise DataError("a float is written as something else than inf, -inf or nan")
    return float(content)


def _complex(content: Any, decode: _Decode) -> complex:
    real, imaginary = (
        expect(part, float, "part of a complex number") for part in _sequence(content, decode, 2)
    )
    return complex(real, imaginary)


def _dict(content: Any, decode: _Decode) -> dict[Any, Any]:
    pairs = [_sequence(pair, decode, 2) for pair in expect(content, list, "a dict")]
    for key, _ in pairs:
        if key is not None and type(key) not in (str, int, float, bool):
            raise DataError(f"a dict has a key of type {type(key).__name__}")
    return dict(pairs)


def _ellipsis(content: Any, decode: _Decode) -> Any:
    expect(content, type(None), "an ellipsis")
    return Ellipsis


def _device(content: Any, decode: _Decode) -> torch.device:
    if not _DEVICE.fullmatch(expect(content, str, "a device")):
        raise DataError(f"{content[:80]!r} is no device")
    try:
        return torch.device(content)
    except RuntimeError as error:
        raise DataError(f"{content!r} is no device of this torch") from error


_CONSTANTS: dict[str, dict[str, Any]] = {
    kind: {name: value for name, value in vars(torch).items() if type(value) is torch_type}
    for kind, torch_type in (
        ("dtype", torch.dtype),
        ("memory_format", torch.memory_format),
        ("layout", torch.layout),
    )
}


def _constant(kind: str) -> Callable[[Any, _Decode], Any]:
    def decode_constant(content: Any, decode: _Decode) -> Any:
        name = expect(content, str, f"a {kind}")
        if name not in _CONSTANTS[kind]:
            raise DataError(f"{name[:80]!r} is no {kind} of this torch")
        return _CONSTANTS[kind][name]

    return decode_constant


_DECODERS: dict[str, Callable[[Any, _Decode], Any]] = {
    "float": _float,
    "complex": _complex,
    "tuple": _sequence,
    "dict": _dict,
    "slice": lambda content, decode: slice(*_sequence(content, decode, 3)),
    "ellipsis": _ellipsis,
    "device": _device,
    **{kind: _constant(kind) for kind in _CONSTANTS},
}
