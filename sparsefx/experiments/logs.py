"""What a run tells while it trains: CSV and JSON lines, a progress bar, TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsefx.experiments.record import EpochRow
from sparsefx.integrations import CsvWriter, TensorBoardWriter, cycle_metrics

if TYPE_CHECKING:
    from sparsefx.experiments.train import Experiment

_COLUMNS = [field.name for field in dataclasses.fields(EpochRow)]


class Log:
    """Hears of a run; this one keeps nothing, subclasses do.

    A run may go on after a checkpoint that is older than the last epoch it told of: a log begins with the
    rows there are then.
    """

    def step(self, experiment: Experiment) -> None:
        """A step is done."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch is done."""

    def close(self) -> None:
        """Nothing more to tell."""


class Logs(Log):
    """Several logs as one."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def step(self, experiment: Experiment) -> None:
        """Tell all."""
        for log in self._logs:
            log.step(experiment)

    def epoch(self, row: EpochRow) -> None:
        """Tell all."""
        for log in self._logs:
            log.epoch(row)

    def close(self) -> None:
        """Tell all."""
        for log in self._logs:
            log.close()


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


class ProgressBar(Log):
    """A bar of the round's steps and a line an epoch on a terminal.

    Raises:
        ImportError: tqdm is not installed.
    """

    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit="step", dynamic_ncols=True)

    def step(self, experiment: Experiment) -> None:
        """Move the bar."""
        self._bar.total, self._bar.n = experiment.training.steps, experiment.step
        self._bar.set_description(f"round {experiment.training.round}", refresh=False)
        self._bar.update(0)

    def epoch(self, row: EpochRow) -> None:
        """Write a line above the bar."""
        self._bar.write(describe(row), file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class Lines(Log):
    """A line an epoch on the standard error, with the time that the round will still take."""

    def __init__(self) -> None:
        self._round, self._first, self._began, self._left = -1, 0, 0.0, 0.0

    def step(self, experiment: Experiment) -> None:
        """Take the time; the first step of a round, or after a checkpoint, is where it begins."""
        now, training = time.monotonic(), experiment.training
        if training.round != self._round:
            self._round, self._first, self._began = training.round, experiment.step, now
        done = experiment.step - self._first
        self._left = (now - self._began) / done * (training.steps - experiment.step) if done else 0.0

    def epoch(self, row: EpochRow) -> None:
        """Write the line."""
        minutes, seconds = divmod(round(self._left), 60)
        print(f"{describe(row)}, {minutes}:{seconds:02d} left of this round", file=sys.stderr, flush=True)


class TensorBoard(Log):
    """Scalars for TensorBoard: the rows of epochs, and with each the metrics of the last cycle.

    Args:
        folder: where they go.
        epochs: how many epochs were told before, when a run goes on.

    Raises:
        MissingPackageError: tensorboard is not installed.
    """

    _SCALARS = ("train_loss", "validation_error", "test_error", "learning_rate")

    def __init__(self, folder: Path, epochs: int = 0) -> None:
        self._write = TensorBoardWriter(folder)
        self._epochs = epochs

    def step(self, experiment: Experiment) -> None:
        """Write the metrics of the last cycle, if this step ended an epoch."""
        if experiment.epoch > self._epochs:
            self._epochs = experiment.epoch
            self._write(cycle_metrics(experiment.training.optimizer), self._epochs)

    def epoch(self, row: EpochRow) -> None:
        """Write what there is of the row."""
        found = {name: getattr(row, name) for name in self._SCALARS}
        self._write({name: value for name, value in found.items() if value is not None}, row.epoch)

    def close(self) -> None:
        """Write what is left."""
        self._write.close()


def logs_for(folder: Path, rows: Sequence[EpochRow] = (), *, tensorboard: bool = False) -> Logs:
    """CSV and JSON in a folder, and a progress bar or lines on the screen.

    Args:
        folder: where the files go.
        rows: epochs that were told before, when a run goes on.
        tensorboard: for TensorBoard, too.
    """
    found: list[Log] = [CsvLog(folder, rows), JsonLog(folder, rows)]
    if tensorboard:
        found.append(TensorBoard(folder, len(rows)))
    return Logs([*found, _screen()])


def _screen() -> Log:
    """A bar where somebody watches and tqdm is installed, lines elsewhere."""
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            return ProgressBar()
    return Lines()


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
