"""Figures without pyplot and without matplotlib, and in notebooks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import masked_mlp
from processes import run_source

import sparsefx
from sparsefx import MissingPackageError, plot


def test_without_matplotlib_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = "figures need matplotlib, which is not installed; pip install matplotlib"
    with pytest.raises(MissingPackageError, match=message):
        plot.masks(masked_mlp(4, 3))
    with pytest.raises(MissingPackageError, match=message):
        plot.channels(sparsefx.report(masked_mlp(4, 3)))


def test_the_graph_of_an_export_needs_no_matplotlib_nor_does_the_import(tmp_path: Path) -> None:
    source = """
import sys, torch, sparsefx
model = torch.nn.Sequential(torch.nn.Linear(4, 3))
sparsefx.plot.graph(sparsefx.export(model, (torch.randn(2, 4),)))
assert not [name for name in sys.modules if name.startswith("matplotlib")]
"""
    finished = run_source(source, tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_figures_leave_pyplot_alone_and_are_their_own_png() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure = plot.masks(masked_mlp(4, 3))
    assert isinstance(figure, pytest.importorskip("matplotlib.figure").Figure)
    assert pyplot.get_fignums() == []
    assert figure._repr_png_().startswith(b"\x89PNG")
