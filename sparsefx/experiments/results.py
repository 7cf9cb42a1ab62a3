"""From a run that has ended to its entry in the ledger."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import sparsefx
from sparsefx.experiments.record import Final, LayerRow, Run
from sparsefx.masking.masks import masked_weights
from sparsefx.report.model_report import describe

if TYPE_CHECKING:
    from sparsefx.experiments.train import Experiment


@dataclass(frozen=True)
class Score:
    """How good a network is on some data.

    Attributes:
        error: wrong answers, %.
        loss: mean cross-entropy.
    """

    error: float
    loss: float


def finished_run(
    experiment: Experiment,
    test: Score,
    validation: Score | None,
    explored: float | None,
    analyses: dict[str, Any],
) -> Run:
    """The entry of a run whose method has taken its final decision.

    Args:
        experiment: the run.
        test: how good the final network is on the test split.
        validation: likewise on the validation split, if there is one.
        explored: fraction of the masked weights that were ever active, if the method kept count.
        analyses: further results by name.
    """
    model = experiment.training.model
    described = describe(model)
    return Run(
        **experiment.configuration,
        versions={
            "sparsefx": sparsefx.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **commit(),
        },
        hardware=hardware(experiment.settings.device),
        seconds=round(experiment.seconds, 1),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        final=Final(
            test_error=test.error,
            validation_error=None if validation is None else validation.error,
            test_loss=test.loss,
            train_loss=experiment.rows[-1].train_loss,
            density=described.density,
            density_of_all=described.density_of_all,
            explored=explored,
        ),
        epochs=tuple(experiment.rows),
        layers=layer_rows(model),
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
    folder = Path(sparsefx.__file__).parent
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
