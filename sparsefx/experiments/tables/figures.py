"""Figures 2 and 3 as PNG files. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsefx.errors import LedgerError
from sparsefx.experiments.ledger.identity import run_name
from sparsefx.experiments.ledger.record import Run
from sparsefx.experiments.tables.cells import Cell, measure
from sparsefx.experiments.tables.groups import Group, groups, label, usual_recipes
from sparsefx.experiments.tables.table import NOT_RUN, Table
from sparsefx.plot.figures import new_figure

_LOWEST = 6  # points of accuracy below the best that a line figure shows


def line_figure(tables: Sequence[Table], runs: Sequence[Run], path: Path) -> Path:
    """Draw tables over densities side by side: the ledger's means solid, published values dashed.

    Args:
        tables: a panel each, a line for every row.
        runs: the ledger's runs.
        path: the file to write.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure, panels = _panels(len(tables))
    for panel, table in zip(panels, tables, strict=True):
        panel.set_title(table.title, fontsize=9)
        for number, (method, cells) in enumerate(table.rows):
            _draw_row(panel, method, [cell for cell in cells if cell], runs, f"C{number}")
        panel.set_xlabel("weights, %")
        top = panel.dataLim.ymax
        panel.set_ylim(max(panel.dataLim.ymin, top - _LOWEST) - 0.2, top + 0.2)
        panel.legend(fontsize=6)
    return _save(figure, path)


def histogram_figure(table: Table, runs: Sequence[Run], path: Path) -> Path:
    """Draw histograms of class specialisation, a panel for every row and a curve for every column.

    Args:
        table: its cells' queries say which runs; those with the analysis are drawn.
        runs: the ledger's runs.
        path: the file to write.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure, panels = _panels(len(table.rows))
    for panel, (row, cells) in zip(panels, table.rows, strict=True):
        panel.set_title(row, fontsize=9)
        panel.set_xlabel("class specialisation")
        panel.set_ylabel("share of channels")
        drawn = [
            _draw_histogram(panel, column, cell, runs)
            for column, cell in zip(table.columns, cells, strict=True)
            if cell
        ]
        if any(drawn):
            panel.legend(fontsize=6)
        else:
            panel.text(0.5, 0.5, NOT_RUN, ha="center", transform=panel.transAxes)
    return _save(figure, path)


def _draw_row(panel: Any, method: str, cells: Sequence[Cell], runs: Sequence[Run], colour: str) -> None:
    """One method: published values, and a line for every kind of run."""
    known = [(100 * cell.query.density, cell.published[0]) for cell in cells if cell.published]
    _draw_line(
        panel,
        f"{method} (paper)",
        [(x, number.value, number.standard_error) for x, number in known],
        {"color": colour, "linestyle": "--", "linewidth": 0.8},
    )
    recipes = usual_recipes(runs)
    lines: dict[str, list[tuple[float, float, float | None]]] = {}
    for cell in cells:
        for measured in measure(cell, runs, recipes):
            point = (100 * cell.query.density, measured.mean.value, measured.mean.standard_error)
            lines.setdefault(measured.label, []).append(point)
    for about, points in lines.items():
        name, line = (f"{method}, {about}", "-.") if about else (method, "-")
        _draw_line(panel, name, points, {"color": colour, "linestyle": line, "marker": "o", "markersize": 3})


def _draw_line(
    panel: Any, name: str, points: Sequence[tuple[float, float, float | None]], style: dict[str, Any]
) -> None:
    """A line with error bars; a dense network, the only one with all weights, is a level."""
    if len(points) == 1 and points[0][0] == 100:
        panel.axhline(
            points[0][1], label=name, **{k: v for k, v in style.items() if not k.startswith("marker")}
        )
        panel.update_datalim([(0, points[0][1])], updatex=False)
    elif points:
        x, y, errors = zip(*points, strict=True)
        panel.errorbar(x, y, [error or 0 for error in errors], label=name, **style)


def _draw_histogram(panel: Any, column: str, cell: Cell, runs: Sequence[Run]) -> bool:
    """One column's histograms, a curve for every kind of run; whether there was any."""
    recipes = usual_recipes(runs)
    drawn = False
    for group in groups(filter(cell.query, runs)):
        for edges, shares in _shares(group):
            about = label(group, recipes, cell.query)
            seeds = f"{len(group)} seed{'s' if len(group) > 1 else ''}"
            panel.stairs(shares, edges, label=", ".join(filter(None, [column, seeds, about])))
            drawn = True
    return drawn


def _shares(group: Group) -> Iterator[tuple[list[float], list[float]]]:
    """Bin edges and the share of channels in each, over layers and seeds; nothing without the analysis."""
    analyses = [run.analyses["specialisation"] for run in group if "specialisation" in run.analyses]
    if not analyses:
        return
    try:
        counts = [layer["counts"] for analysis in analyses for layer in analysis["layers"]]
        bins = [sum(bin_counts) for bin_counts in zip(*counts, strict=True)]
        yield analyses[0]["edges"], [count / max(1, sum(bins)) for count in bins]
    except (KeyError, TypeError, ValueError) as error:
        names = ", ".join(run_name(run.configuration) for run in group)
        raise LedgerError(
            f"analyses.specialisation in {names} is not as it was written: {error!r}"
        ) from error


def _panels(count: int) -> tuple[Any, list[Any]]:
    remedy = "pip install matplotlib, or write the tables alone with figures=False"
    figure = new_figure(5 * count, 4, remedy=remedy)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=150, metadata={"Software": None})  # the same file for the same ledger
    return path
