"""What a log is: it hears of every step and of every epoch of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefx.experiments.ledger.record import EpochRow
from sparsefx.methods import Training


@dataclass(frozen=True)
class Progress:
    """How far a run is after a step.

    Attributes:
        training: the method at work, with its round and the steps of the round.
        step: optimizer steps done in this round.
        epoch: epochs done, those of earlier rounds included.
    """

    training: Training
    step: int
    epoch: int


class Log:
    """The base of logs; it keeps nothing.

    A resumed run may start from a checkpoint that is older than the last epoch that a log heard of. So a
    log starts with the rows that the checkpoint has.
    """

    def step(self, progress: Progress) -> None:
        """A step is done."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch is done."""

    def close(self) -> None:
        """Nothing more to tell."""


class Logs(Log):
    """Several logs as one."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    def step(self, progress: Progress) -> None:
        """Tell every log."""
        for log in self._logs:
            log.step(progress)

    def epoch(self, row: EpochRow) -> None:
        """Tell every log."""
        for log in self._logs:
            log.epoch(row)

    def close(self) -> None:
        """Tell every log."""
        for log in self._logs:
            log.close()
