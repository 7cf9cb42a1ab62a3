"""The logs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsefx.experiments.ledger.record import EpochRow
from sparsefx.experiments.run.logs.files import CsvLog, JsonLog
from sparsefx.experiments.run.logs.log import Log, Logs
from sparsefx.experiments.run.logs.screen import screen_log
from sparsefx.experiments.run.logs.tensorboard import TensorBoard


def logs_for(folder: Path, rows: Sequence[EpochRow] = (), *, tensorboard: bool = False) -> Logs:
    """CSV and JSON in a folder, and a progress bar or lines on the screen.

    Args:
        folder: where the files go.
        rows: epochs that were told before, when a run goes on.
        tensorboard: for TensorBoard, too.
    """
    logs: list[Log] = [CsvLog(folder, rows), JsonLog(folder, rows)]
    if tensorboard:
        logs.append(TensorBoard(folder, len(rows)))
    return Logs([*logs, screen_log()])
