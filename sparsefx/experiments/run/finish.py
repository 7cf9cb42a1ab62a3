"""From a run that has ended to its entry in the ledger."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsefx._common.version import VERSION
from sparsefx.experiments.ledger.record import EpochRow, Final, LayerRow, Run
from sparsefx.experiments.run.evaluate import Score
from sparsefx.experiments.run.setup import Setup
from sparsefx.masking.masks import masked_weights
from sparsefx.report.model_report import describe


def finished_run(
    setup: Setup,
    rows: Sequence[EpochRow],
    *,
    seconds: float,
    test: Score,
    validation: Score | None,
    explored: float | None,
    analyses: dict[str, Any],
) -> Run:
    """The entry of a run whose method has taken its final decision.

    Args:
        setup: what was trained.
        rows: its epochs.
        seconds: how long it took.
        test: how good the final network is on the test split.
        validation: how good it is on the validation split, if there is one.
        explored: fraction of the masked weights that were ever active, if the method kept count.
        analyses: further results by name.
    """
    described = describe(setup.model)
    return Run(
        **setup.settings.configuration(setup.data.name),
        versions={
            "sparsefx": VERSION,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **commit(),
        },
        hardware=hardware(setup.settings.device),
        seconds=round(seconds, 1),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        final=Final(
            test_error=test.error,
            validation_error=None if validation is None else validation.error,
            test_loss=test.loss,
            train_loss=rows[-1].train_loss,
            density=described.density,
            density_of_all=described.density_of_all,
            explored=explored,
        ),
        epochs=tuple(rows),
        layers=layer_rows(setup.model),
        analyses=analyses,
    )


def layer_rows(model: nn.Module) -> tuple[LayerRow, ...]:
    """Every masked layer of a model."""
    return tuple(
        LayerRow(m.name, tuple(m.weight.shape), int(m.mask.sum()), m.density) for m in masked_weights(model)
    )


def hardware(device: str) -> str:
    """What a run is on, in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def commit() -> dict[str, str]:
    """The commit that a checkout of sparsefx is at, ``+`` if files differ; nothing where it is installed."""
    folder = Path(__file__).resolve().parents[2]
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for arguments in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": head + ("+" if changes else "")}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name"))
        return name.partition(":")[2].strip()
    except (OSError, StopIteration):
        return f"{platform.machine()} CPU"
