"""What is a number and what a count, for arguments that are checked; a bool is neither."""

from __future__ import annotations

import math

from sparsefx.errors import ArgumentError


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is an int of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_count(argument: str, value: object, least: int = 1) -> None:
    """Refuse what is no count.

    Args:
        argument: what the message calls it.
        value: what was received.
        least: the smallest that is accepted.

    Raises:
        ArgumentError: it is not an int, or less.
    """
    if not is_count(value, least):
        raise ArgumentError(f"{argument}={value!r} is not a whole number of at least {least}")
