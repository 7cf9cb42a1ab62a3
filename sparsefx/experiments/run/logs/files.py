"""Logs in files: a row or a line for each epoch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from sparsefx.experiments.ledger.record import EpochRow
from sparsefx.experiments.run.logs.log import Log
from sparsefx.integrations import CsvWriter

_COLUMNS = [field.name for field in dataclasses.fields(EpochRow)]


class CsvLog(Log):
    """A row an epoch in ``epochs.csv``; densities of the layers with spaces between."""

    def __init__(self, folder: Path, rows: Sequence[EpochRow] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "epochs.csv"
        path.unlink(missing_ok=True)
        self._writer = CsvWriter(path, _COLUMNS)
        for row in rows:
            self.epoch(row)

    def epoch(self, row: EpochRow) -> None:
        """Append the row."""
        densities = " ".join(f"{density:.6g}" for density in row.densities)
        self._writer.row({**vars(row), "densities": densities})


class JsonLog(Log):
    """An object an epoch, a line each, in ``epochs.jsonl``."""

    def __init__(self, folder: Path, rows: Sequence[EpochRow] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "epochs.jsonl"
        self._path.write_text("".join(map(self._line, rows)), encoding="utf-8")

    def epoch(self, row: EpochRow) -> None:
        """Append the object."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(row))

    def _line(self, row: EpochRow) -> str:
        return json.dumps(dataclasses.asdict(row)) + "\n"
