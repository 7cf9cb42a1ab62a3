"""Tables as plain text, and as HTML for notebooks."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows under a header, and lines below them.

    Attributes:
        header: the columns' names; an empty one continues the column before it.
        rows: a cell for each column.
        notes: lines that follow.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def to_text(self) -> str:
        """The table with aligned columns: the first to the left, the others to the right."""
        return "\n".join([format_table(self.header, self.rows), *self.notes])

    def to_html(self) -> str:
        """The table as an HTML fragment; all text is escaped, and nothing is loaded from elsewhere."""
        head = "".join(_header_cells(self.header))
        rows = "".join(f"<tr>{_cells(row)}</tr>" for row in self.rows)
        notes = "<br>".join(map(_escaped, self.notes))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return table + (f"<p>{notes}</p>" if notes else "")


class Tabular(ABC):
    """What prints as a table, and in a notebook shows as one."""

    @abstractmethod
    def _table(self) -> Table: ...

    def __str__(self) -> str:
        return self._table().to_text()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [_line(row, widths) for row in (header, ["-" * width for width in widths], *rows)]
    return "\n".join(lines)


def format_count(count: int | None) -> str:
    """A count with thin thousands: ``25557032`` becomes ``25,557,032``; None becomes ``-``."""
    return "-" if count is None else f"{count:,}"


def printable(text: str) -> str:
    """Text without what no picture or page can hold, such as control characters in a layer's name."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *rest]).rstrip()


def _header_cells(header: Sequence[str]) -> Iterator[str]:
    starts = [index for index, name in enumerate(header) if name or not index]
    for start, end in zip(starts, [*starts[1:], len(header)], strict=True):
        yield f'<th colspan="{end - start}" style="text-align: {_side(start)}">{_escaped(header[start])}</th>'


def _cells(row: Sequence[str]) -> str:
    return "".join(
        f'<td style="text-align: {_side(column)}">{_escaped(cell)}</td>' for column, cell in enumerate(row)
    )


def _side(column: int) -> str:
    return "right" if column else "left"


def _escaped(text: str) -> str:
    return html.escape(printable(text))
