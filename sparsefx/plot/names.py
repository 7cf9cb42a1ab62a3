"""Layers' names as a picture can show them."""

from __future__ import annotations

from collections.abc import Sequence

from sparsefx._common.table import printable

LONGEST = 64  # characters of a name that a figure shows
_INCHES_A_LETTER = 0.065


def shortened(name: str, longest: int = LONGEST) -> str:
    """A name that can be printed; a long one loses its middle."""
    name = printable(name)
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def width_of(names: Sequence[str]) -> float:
    """Inches that the longest of some layers' names takes in small print."""
    return _INCHES_A_LETTER * max(len(shortened(name)) for name in names)


def plain(name: str, longest: int = LONGEST) -> str:
    """A name that matplotlib writes as it is: a dollar in it begins no formula."""
    return shortened(name, longest).replace("$", r"\$")
