"""Where metrics go without a framework: a CSV file, TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsefx.errors import ArgumentError, MissingPackageError


class CsvWriter:
    """A CSV file that grows by a row at a time.

    Args:
        path: the file; one that exists is continued.
        columns: its columns; by default those of the first row.

    Raises:
        ArgumentError: the file has other columns.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "cycles.csv")
        >>> write = CsvWriter(path)
        >>> write({"sparse/density": 0.05}, 100)
        >>> path.read_text().split()
        ['step,sparse/density', '100,0.05']
    """

    def __init__(self, path: str | Path, columns: Sequence[str] | None = None) -> None:
        self._path = Path(path)
        self._columns = self._header()
        if columns is not None:
            self._settle(columns)

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the metrics of a step."""
        self.row({"step": step, **metrics})

    def row(self, cells: Mapping[str, Any]) -> None:
        """Append a row, its cells by the name of their column."""
        self._settle(list(cells))
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(cells.values())

    def _settle(self, columns: Sequence[str]) -> None:
        """Begin the file with its columns, or see that it has these."""
        if self._columns is None:
            self._columns = list(columns)
            with self._path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(columns)
        elif list(columns) != self._columns:
            strange = sorted(set(columns) ^ set(self._columns))
            raise ArgumentError(
                f"path={str(self._path)!r} has other columns: {', '.join(strange) or 'in another order'}. "
                "Give each run, and each kind of row, a file of its own"
            )

    def _header(self) -> list[str] | None:
        if not self._path.exists():
            return None
        with self._path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), None)


class TensorBoardWriter:
    """Scalars for TensorBoard.

    Args:
        folder: where TensorBoard will look: ``tensorboard --logdir FOLDER``.

    Raises:
        MissingPackageError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "writing for TensorBoard needs a package: pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
