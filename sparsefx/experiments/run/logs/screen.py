"""Logs on the screen: a progress bar, or a line for each epoch."""

from __future__ import annotations

import contextlib
import sys
import time

from sparsefx.experiments.ledger.record import EpochRow
from sparsefx.experiments.run.logs.log import Log, Progress


class ProgressBar(Log):
    """A bar of the round's steps and a line an epoch on a terminal.

    Raises:
        ImportError: tqdm is not installed.
    """

    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit="step", dynamic_ncols=True)

    def step(self, progress: Progress) -> None:
        """Move the bar."""
        self._bar.total, self._bar.n = progress.training.steps, progress.step
        self._bar.set_description(f"round {progress.training.round}", refresh=False)
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

    def step(self, progress: Progress) -> None:
        """Take the time; the first step of a round, or after a checkpoint, is where it begins."""
        now, training = time.monotonic(), progress.training
        if training.round != self._round:
            self._round, self._first, self._began = training.round, progress.step, now
        done = progress.step - self._first
        self._left = (now - self._began) / done * (training.steps - progress.step) if done else 0.0

    def epoch(self, row: EpochRow) -> None:
        """Write the line."""
        minutes, seconds = divmod(round(self._left), 60)
        print(f"{describe(row)}, {minutes}:{seconds:02d} left of this round", file=sys.stderr, flush=True)


def screen_log() -> Log:
    """A bar on a terminal where tqdm is installed, lines elsewhere."""
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
