"""A log for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from sparsefx.experiments.ledger.record import EpochRow
from sparsefx.experiments.run.logs.log import Log, Progress
from sparsefx.integrations import TensorBoardWriter, cycle_metrics


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

    def step(self, progress: Progress) -> None:
        """Write the metrics of the last cycle, if this step ended an epoch."""
        if progress.epoch > self._epochs:
            self._epochs = progress.epoch
            self._write(cycle_metrics(progress.training.optimizer), self._epochs)

    def epoch(self, row: EpochRow) -> None:
        """Write what there is of the row."""
        scalars = {name: getattr(row, name) for name in self._SCALARS}
        self._write({name: value for name, value in scalars.items() if value is not None}, row.epoch)

    def close(self) -> None:
        """Write what is left."""
        self._write.close()
