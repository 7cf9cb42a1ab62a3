"""Which channels of each layer are in use, and which are empty or were removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsefx.errors import ArgumentError
from sparsefx.plot.counts import Counts, of_change, of_layer
from sparsefx.plot.figures import new_figure
from sparsefx.plot.names import width_of
from sparsefx.plot.over_cycles import label_rows
from sparsefx.plot.palette import KEPT, NEW, REMOVED
from sparsefx.report.export_report import ExportReport
from sparsefx.report.model_report import ModelReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PARTS = {"kept": KEPT, "gone": REMOVED, "new": NEW}
_MOST_COUNTS = 60  # layers up to which the counts fit beside the bars


def channels(report: ModelReport | ExportReport) -> Figure:
    """Draw the share of each layer's input and output channels that is in use, and their counts.

    Of one model, the other channels are empty: all their weights are 0. Of an export, they were removed;
    a layer that it made out of a part of another is new.

    Args:
        report: ``sparsefx.report(model)``, ``compact.report``, or ``sparsefx.report(before, after)``.

    Raises:
        ArgumentError: it is not a report, or a report without layers.
        MissingPackageError: matplotlib is not installed.
    """
    by_layer = _by_layer(report)
    names = [layer.name for layer in report.layers]
    height = min(14.0, 1.5 + 0.18 * len(names))
    figure = new_figure(7.0 + width_of(names), height)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, side, counts in zip(panels, ("input", "output"), zip(*by_layer, strict=True), strict=True):
        panel.set_title(f"{side} channels", fontsize=10)
        _draw(panel, counts)
    label_rows(panels[0], names, height - 1.5)
    labels = (
        ["in use", "empty"] if isinstance(report, ModelReport) else ["in use", "removed", "in a new layer"]
    )
    bars = panels[0].containers[: len(labels)]
    figure.legend(bars, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _by_layer(report: ModelReport | ExportReport) -> list[tuple[Counts, Counts]]:
    """Each layer's input and output channels."""
    if not isinstance(report, (ModelReport, ExportReport)):
        raise ArgumentError(
            f"report must be a ModelReport or an ExportReport, got {type(report).__name__}; pass "
            "sparsefx.report(model), or compact.report after an export"
        )
    if not report.layers:
        raise ArgumentError("report has no layers; channels are those of Linear and Conv layers")
    if isinstance(report, ModelReport):
        return [of_layer(layer) for layer in report.layers]
    return [of_change(change) for change in report.layers]


def _draw(panel: Axes, counts: Sequence[Counts]) -> None:
    """A bar a layer, of 100%, with its parts one after the other."""
    rows = [row + 0.5 for row in range(len(counts))]
    left = [0.0] * len(counts)
    for part, colour in _PARTS.items():
        widths = [100 * getattr(count, part) / max(1, sum(count)) for count in counts]
        panel.barh(rows, widths, left=left, height=0.8, color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    panel.set_xlim(0, 100)
    panel.set_xlabel("share, %")
    if len(counts) <= _MOST_COUNTS:
        _write_counts(panel, rows, counts)


def _write_counts(panel: Axes, rows: Sequence[float], counts: Sequence[Counts]) -> None:
    for row, count in zip(rows, counts, strict=True):
        panel.text(101, row, f"{count.after}/{count.before or '-'}", fontsize=6, va="center")
