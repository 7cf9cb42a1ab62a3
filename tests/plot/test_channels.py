"""Bars of channels are the report's counts."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from torch import nn

import sparsefx
from sparsefx import ArgumentError, ExportReport, ModelReport, plot
from sparsefx.report.export_report import LayerChange
from sparsefx.report.model_report import LayerReport

pytest.importorskip("matplotlib")


def layer(name: str, inputs: int, outputs: int, empty: tuple[int, int] = (0, 0)) -> LayerReport:
    return LayerReport(name, (outputs, inputs), 1.0, inputs, outputs, *empty, 0, 0, None, None)


def parts(panel: Any) -> list[list[float]]:
    """The widths of each layer's bar: in use, gone, new."""
    widths = [[bar.get_width() for bar in container] for container in panel.containers]
    return [list(bars) for bars in zip(*widths, strict=True)]


def counts(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_empty_channels_by_hand() -> None:
    report = ModelReport((layer("a", 4, 8, (1, 6)), layer("b", 8, 2, (8, 0))), 0, 1.0, 1.0)
    figure = plot.channels(report)
    figure.savefig(io.BytesIO())
    inputs, outputs = figure.axes
    assert parts(inputs) == [[75, 25, 0], [0, 100, 0]]
    assert parts(outputs) == [[25, 75, 0], [100, 0, 0]]
    assert (counts(inputs), counts(outputs)) == (["3/4", "0/8"], ["2/8", "2/2"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["in use", "empty"]


def test_removed_channels_by_hand() -> None:
    changes = (
        LayerChange("kept", layer("kept", 4, 8), layer("kept", 3, 2)),
        LayerChange("gone", layer("gone", 4, 8), None),
        LayerChange("new", None, layer("new", 3, 2)),
    )
    inputs, outputs = plot.channels(ExportReport(changes, 0, 0)).axes
    assert parts(inputs) == [[75, 25, 0], [0, 100, 0], [0, 0, 100]]
    assert parts(outputs) == [[25, 75, 0], [0, 100, 0], [0, 0, 100]]
    assert counts(outputs) == ["2/8", "0/8", "2/-"]


def test_an_export() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].weight.data[3:].zero_()
    compact = sparsefx.export(net, (torch.randn(1, 4),), gather="never")
    assert isinstance(compact.report, ExportReport)
    assert counts(plot.channels(compact.report).axes[1]) == ["3/8", "2/2"]


@pytest.mark.parametrize("count", [1, 61])
def test_any_number_of_layers(count: int) -> None:
    layers = tuple(layer(f"block{i}.$conv$", 8, 8, (i % 9, 0)) for i in range(count))
    figure = plot.channels(ModelReport(layers, 0, 1.0, 1.0))
    figure.savefig(io.BytesIO())
    assert len(parts(figure.axes[0])) == count
    assert figure.get_size_inches()[1] <= 14
    assert figure.axes[0].get_yticklabels()[0].get_text() == r"block0.\$conv\$"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (nn.ReLU(), "report must be a ModelReport or an ExportReport, got ReLU; pass sparsefx.report(model)"),
        (ModelReport((), 0, 0.0, 0.0), "report has no layers"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        plot.channels(wrong)
