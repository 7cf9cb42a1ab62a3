"""What a run tells while it trains: a line an epoch, a CSV file, a progress bar, TensorBoard."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefx.errors import MissingPackageError
from sparsefx.experiments.record import EpochRow

if TYPE_CHECKING:
    from sparsefx.experiments.train import Experiment

_COLUMNS = [field.name for field in dataclasses.fields(EpochRow)]


class Log:
    """Tells of every epoch.

    Args:
        folder: where ``epochs.csv`` and TensorBoard's files go; None writes none.
        rows: epochs that were told before, when a run goes on.
        progress: show a progress bar, where tqdm is installed and somebody watches.
        tensorboard: write for TensorBoard, too.

    Raises:
        MissingPackageError: TensorBoard is wanted and not installed.
    """

    def __init__(
        self,
        folder: Path | None = None,
        rows: list[EpochRow] | None = None,
        *,
        progress: bool = False,
        tensorboard: bool = False,
    ) -> None:
        self._path = None if folder is None else folder / "epochs.csv"
        self._writer = _tensorboard(folder) if tensorboard and folder is not None else None
        self._bar = _bar() if progress and sys.stderr.isatty() else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([_COLUMNS, *map(_cells, rows or [])])

    def step(self, experiment: Experiment) -> None:
        """A step is done."""
        if self._bar is not None:
            self._bar.total = experiment.training.steps
            self._bar.n = experiment.step
            self._bar.set_description(f"round {experiment.training.round}", refresh=False)
            self._bar.update(0)

    def epoch(self, row: EpochRow) -> None:
        """An epoch is done."""
        if self._path is not None:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(_cells(row))
        if self._writer is not None:
            for name in ("train_loss", "validation_error", "test_error", "learning_rate", "prune_rate"):
                if getattr(row, name) is not None:
                    self._writer.add_scalar(name, getattr(row, name), row.epoch)
            for index, density in enumerate(row.densities):
                self._writer.add_scalar(f"density/{index}", density, row.epoch)
        if self._bar is not None:
            self._bar.write(describe(row), file=sys.stderr)

    def close(self) -> None:
        """Nothing more to tell."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()


def describe(row: EpochRow) -> str:
    """An epoch in a line."""
    parts = [f"epoch {row.epoch}"]
    if row.train_loss is not None:
        parts.append(f"loss {row.train_loss:.4f}")
    for name in ("validation_error", "test_error"):
        value = getattr(row, name)
        if value is not None:
            parts.append(f"{name.replace('_', ' ')} {value:.2f}%")
    return ", ".join(parts)


def _cells(row: EpochRow) -> list[Any]:
    return [
        " ".join(f"{d:.6g}" for d in row.densities) if name == "densities" else getattr(row, name)
        for name in _COLUMNS
    ]


def _bar() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(unit="step", dynamic_ncols=True)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError(
            "tensorboard=True needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter(str(folder))
