"""A table is rows and columns of cells; it is written as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sparsefx.experiments.ledger.record import Run
from sparsefx.experiments.tables.cells import Cell, Measured, measure
from sparsefx.experiments.tables.groups import Recipes, usual_recipes
from sparsefx.experiments.tables.published import Published

NOT_RUN = "not run"
DAGGER = "† published value not checked against its source."

_CSV_HEADER = ["table", "row", "column", "metric", "source", "label", "seeds", "mean", "standard_error"]
_CSV_HEADER += ["low_95", "high_95", "remark"]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: its name in file names, such as ``"table1"``.
        title: what it shows, with the unit.
        corner: what the rows are.
        columns: the columns' headings.
        rows: each row's heading and cells; None where there is nothing to ask.
        note: what a reader must know, in Markdown.
    """

    name: str
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    note: str = ""

    def cells(self) -> Iterator[tuple[str, str, Cell]]:
        """(row, column, cell) of every cell there is."""
        for row, cells in self.rows:
            for column, cell in zip(self.columns, cells, strict=True):
                if cell is not None:
                    yield row, column, cell


def to_markdown(table: Table, runs: Sequence[Run]) -> str:
    """A table in Markdown: in each cell the ledger's mean ± standard error, and the published numbers."""
    recipes = usual_recipes(runs)
    rows = [[row, *(_cell_text(cell, runs, recipes) for cell in cells)] for row, cells in table.rows]
    text = [f"### {table.title}", markdown_table([table.corner, *table.columns], rows)]
    if any(not number.confirmed for _, _, cell in table.cells() for number in cell.published):
        text.append(DAGGER)
    return "\n\n".join([*text, *([table.note] if table.note else [])])


def to_csv(table: Table, runs: Sequence[Run]) -> str:
    """A table as CSV, a line for every mean of the ledger's and every published number."""
    recipes = usual_recipes(runs)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for row, column, cell in table.cells():
        lead = [table.name, row, column, cell.metric]
        for line in _csv_lines(cell, measure(cell, runs, recipes)):
            writer.writerow([*lead, *line])
    return out.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of text as a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def mean_text(measured: Measured, *, signed: bool = False) -> str:
    """Mean, standard error, number of seeds and label: ``1.52 ± 0.040 (5 seeds)``."""
    mean = measured.mean
    error = "" if mean.standard_error is None else f" ± {mean.standard_error:.3f}"
    seeds = "1 seed" if mean.n == 1 else f"{mean.n} seeds"
    about = f", {measured.label}" if measured.label else ""
    return f"{mean.value:{'+' if signed else ''}.2f}{error} ({seeds}{about})"


def _cell_text(cell: Cell | None, runs: Sequence[Run], recipes: Recipes) -> str:
    if cell is None:
        return ""
    signed = cell.baseline is not None
    means = [mean_text(measured, signed=signed) for measured in measure(cell, runs, recipes)]
    return "<br>".join([*(means or [NOT_RUN]), *(_published_text(n, signed) for n in cell.published)])


def _published_text(number: Published, signed: bool) -> str:
    error = "" if number.standard_error is None else f" ± {number.standard_error:g}"
    dagger = "" if number.confirmed else " †"
    digits = max(len(f"{number.value:g}".partition(".")[2]), 1 if number.standard_error is None else 2)
    return f"{number.by}: {number.value:{'+' if signed else ''}.{digits}f}{error}{dagger}"


def _csv_lines(cell: Cell, means: Sequence[Measured]) -> Iterator[list[object]]:
    for measured in means:
        mean = measured.mean
        low, high = mean.interval or ("", "")
        error = "" if mean.standard_error is None else f"{mean.standard_error:.6g}"
        yield ["ledger", measured.label, mean.n, f"{mean.value:.6g}", error, _number(low), _number(high), ""]
    if not means:
        yield ["ledger", NOT_RUN, 0, "", "", "", "", ""]
    for number in cell.published:
        error = "" if number.standard_error is None else f"{number.standard_error:g}"
        remark = number.remark if number.confirmed else f"{DAGGER} {number.remark}".strip()
        yield [number.source, number.by, "", f"{number.value:g}", error, "", "", remark]


def _number(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value
