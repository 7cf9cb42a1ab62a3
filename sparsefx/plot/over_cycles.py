"""Numbers of each layer over the cycles: lines for a few layers, heat maps for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sparsefx.plot.figures import new_figure
from sparsefx.plot.names import plain, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

ALL_LAYERS = "all layers"  # the name of what is no layer's
MOST_LINES = 10  # more cannot be told apart by colour
_TOTAL = {"color": "black", "linestyle": "--", "marker": "x"}
_POINTS = 40  # cycles up to which each is marked
_LABEL_INCHES = 0.13  # height of a layer's name beside a heat map


def over_cycles(
    title: str,
    names: Sequence[str],
    cycles: Sequence[int],
    panels: Mapping[str, Tensor],
    *,
    logarithmic: bool = False,
) -> Figure:
    """Draw panels side by side, a line or a row of colours for each name.

    Args:
        title: the figure's title.
        names: of layers.
        cycles: the cycles' numbers, ascending.
        panels: what each panel shows: its label, and float64 values of shape (cycles, names), not negative.
        logarithmic: whether the values' scale is.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    many = len({*names} - {ALL_LAYERS}) > MOST_LINES
    height = min(12.0, max(4.0, 1.2 + _LABEL_INCHES * len(names)))
    figure = new_figure(0.5 + width_of(names) + 4.5 * len(panels), height if many else 4.0)
    figure.suptitle(title, fontsize=11)
    drawn = figure.subplots(1, len(panels), sharex=True, sharey=many, squeeze=False)[0]
    for panel, (label, values) in zip(drawn, panels.items(), strict=True):
        if many:
            _heat_map(panel, label, cycles, values, logarithmic)
        else:
            _lines(panel, label, cycles, values, logarithmic)
            panel.lines[-1].set(**_TOTAL if names[-1] == ALL_LAYERS else {})
        panel.set_xlabel("cycle")
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if many:
        label_rows(drawn[0], names, height - 1.2)
    else:
        _legend(figure, drawn[-1], names)
    return figure


def label_rows(panel: Axes, names: Sequence[str], inches: float) -> None:
    """Name the rows of a panel, the first one above; as many of them as there is room for.

    Args:
        panel: its row i lies between i and i + 1.
        names: the rows' names.
        inches: the panel's height.
    """
    step = -(-len(names) // max(1, round(inches / _LABEL_INCHES)))
    shown = range(0, len(names), step)
    panel.set_yticks([row + 0.5 for row in shown], [plain(names[row]) for row in shown], fontsize=7)
    panel.set_ylim(len(names), 0)


def _lines(panel: Axes, label: str, cycles: Sequence[int], values: Tensor, logarithmic: bool) -> None:
    marker = "o" if len(cycles) <= _POINTS else ""
    for column in values.T.tolist():
        panel.plot(cycles, column, marker=marker, markersize=3, linewidth=1.2)
    panel.set_ylabel(label)
    panel.set_xlim(cycles[0] - 0.5, cycles[-1] + 0.5)
    panel.grid(alpha=0.3)
    if logarithmic and bool((values > 0).any()):
        panel.set_yscale("log")
        _plain_ticks(panel)
    else:
        panel.set_ylim(bottom=0)


def _plain_ticks(panel: Axes) -> None:
    """Write 20 for 20, and also between the powers of ten where they are far apart."""
    from matplotlib.ticker import LogFormatter

    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    panel.tick_params(axis="y", which="minor", labelsize=7)


def _legend(figure: Figure, panel: Axes, names: Sequence[str]) -> None:
    labels = [plain(name) for name in names]
    figure.legend(panel.lines, labels, loc="outside right upper", fontsize=8)


def _heat_map(panel: Axes, label: str, cycles: Sequence[int], values: Tensor, logarithmic: bool) -> None:
    edges = [cycle - 0.5 for cycle in (*cycles, cycles[-1] + 1)]
    mesh = panel.pcolormesh(
        edges,
        range(values.shape[1] + 1),
        values.T.numpy(),
        norm=_norm(values, logarithmic),
        cmap="viridis",
        rasterized=True,
    )
    bar = panel.figure.colorbar(mesh, ax=panel, label=label, aspect=40)
    if logarithmic:
        _plain_ticks(bar.ax)


def _norm(values: Tensor, logarithmic: bool) -> Normalize:
    from matplotlib.colors import LogNorm, Normalize

    positive = values[values > 0]
    if logarithmic and positive.numel() and float(positive.min()) < float(positive.max()):
        return LogNorm(float(positive.min()), float(positive.max()), clip=True)
    return Normalize(0, float(values.max()) or 1)
