"""Figures of matplotlib, which is imported when the first one is made."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsefx.errors import MissingPackageError
from sparsefx.table import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_NAME = 64  # characters of a layer's name that a figure shows
_INCHES_A_LETTER = 0.065


def new_figure(width: float, height: float, *, remedy: str = "pip install matplotlib") -> Figure:
    """An empty figure that pyplot does not know of, so that nobody has to close it.

    Args:
        width: in inches.
        height: in inches.
        remedy: what to do without matplotlib.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingPackageError(f"figures need matplotlib, which is not installed; {remedy}") from error
    from sparsefx.plot.notebook_figure import NotebookFigure

    return NotebookFigure(figsize=(width, height), layout="constrained")


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A layer's name as a picture can show it; a long one loses its middle."""
    name = printable(name)
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def width_of(names: Sequence[str]) -> float:
    """Inches that the longest of some layers' names takes in small print."""
    return _INCHES_A_LETTER * max(len(shortened(name)) for name in names)


def plain(name: str, longest: int = LONGEST_NAME) -> str:
    """A layer's name as text that matplotlib writes as it is: a dollar in it begins no formula."""
    return shortened(name, longest).replace("$", r"\$")
