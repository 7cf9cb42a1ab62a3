"""Which values the options of a method may have."""

from __future__ import annotations

from typing import Any

from sparsefx._common.values import is_number
from sparsefx.errors import ArgumentError


def check_choice(name: str, value: object, *choices: object) -> None:
    """Check that a value is one of some values.

    Raises:
        ArgumentError: it is something else.
    """
    if value not in choices:
        raise ArgumentError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def check_flags(part: Any, *names: str) -> None:
    """Check that attributes are True or False.

    Raises:
        ArgumentError: it is something else.
    """
    for name in names:
        if not isinstance(getattr(part, name), bool):
            raise ArgumentError(f"{name}={getattr(part, name)!r} is neither True nor False")


def check_fraction(name: str, value: object) -> None:
    """Check that a value is a number in [0, 1].

    Raises:
        ArgumentError: it is something else.
    """
    if not (is_number(value) and 0 <= value <= 1):  # type: ignore[operator]
        raise ArgumentError(f"{name}={value!r} is not in [0, 1]")


def check_positive_fraction(name: str, value: object, example: str = "") -> None:
    """Check that a value is a number in (0, 1].

    Raises:
        ArgumentError: it is something else.
    """
    if not (is_number(value) and 0 < value <= 1):  # type: ignore[operator]
        raise ArgumentError(f"{name}={value!r} is not in (0, 1]{example}")


def check_function(name: str, value: object) -> None:
    """Check that a value is None or a callable.

    Raises:
        ArgumentError: it is something else.
    """
    if value is not None and not callable(value):
        raise ArgumentError(f"{name}={value!r} is not a function of the method's Sparsity")
