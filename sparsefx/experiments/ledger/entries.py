"""The runs of a ledger's folder as they are stored: a line of a file each, or in the older format a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsefx.errors import LedgerError
from sparsefx.experiments.ledger.identity import run_name
from sparsefx.experiments.ledger.record import Run


@dataclass(frozen=True)
class Entry:
    """One run as it is stored.

    Attributes:
        path: the file.
        line: the number of its line, from 1; 0 where the file holds this run alone.
        content: the JSON text.
    """

    path: Path
    line: int
    content: bytes

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.path}, line {self.line}" if self.line else str(self.path)

    def run(self) -> Run:
        """The run.

        Raises:
            LedgerError: the entry is damaged.
        """
        try:
            return Run.from_json(self.content.decode())
        except (LedgerError, UnicodeDecodeError) as error:
            what = "the line" if self.line else "it"
            raise LedgerError(
                f"{self.place} is damaged: {error}; restore it, or delete {what} and run again"
            ) from error

    def is_of(self, name: str) -> bool:
        """Whether it holds the run of that name, damaged or not; False where its configuration is lost."""
        try:
            return run_name(json.loads(self.content)) == name
        except (LedgerError, LookupError, TypeError, ValueError, RecursionError):
            return False


def entries(folder: Path) -> Iterator[Entry]:
    """Every entry of a folder, of both formats."""
    for path in _files(folder, "*.jsonl"):
        yield from lines_of(path)
    yield from single_entries(folder)


def lines_of(path: Path) -> Iterator[Entry]:
    """The entries of a file of lines, empty lines left out; none if there is no such file."""
    if path.exists():
        for number, content in enumerate(path.read_bytes().split(b"\n"), start=1):
            if content.strip():
                yield Entry(path, number, content)


def single_entries(folder: Path) -> Iterator[Entry]:
    """The entries in the older format, a file each."""
    for path in _files(folder, "*.json"):
        yield Entry(path, 0, path.read_bytes())


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files in the order of their names; hidden ones are none of the ledger's."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
