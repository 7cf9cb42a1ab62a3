"""Figures of matplotlib, which is imported when the first one is made."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sparsefx.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, *, remedy: str = "pip install matplotlib") -> Figure:
    """An empty figure that pyplot does not know, so that it need not be closed.

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
