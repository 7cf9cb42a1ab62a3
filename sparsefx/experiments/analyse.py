"""Analyses of a run, by name: what they measure on the trained network, as the ledger keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.conv import _ConvNd

from sparsefx.analyses.specialisation import class_specialisation
from sparsefx.errors import ArgumentError
from sparsefx.report.speedup import estimate_speedup

if TYPE_CHECKING:
    from sparsefx.experiments.train import Experiment

_BATCH = 500


def _specialisation(experiment: Experiment) -> dict[str, Any]:
    """Class specialisation over the whole training set (Dettmers & Zettlemoyer 2019, section 5.2)."""
    preactivated = experiment.settings.network.name.startswith("wrn")
    found = class_specialisation(
        experiment.training.model,
        experiment.data.train.batches(_BATCH),
        experiment.data.classes,
        where="convolution inputs" if preactivated else "relu outputs",
    )
    return found.as_dict()


def _speedup(experiment: Experiment) -> dict[str, Any]:
    """Estimates for sparse and for dense convolutions (section 4.1), on one training batch."""
    inputs, _ = next(iter(experiment.data.train.batches(experiment.settings.recipe.batch_size)))
    kinds = {"weights": False, "activations": True}
    return {
        name: estimate_speedup(experiment.training.model, (inputs,), activations=activations).as_dict()
        for name, activations in kinds.items()
    }


@torch.no_grad()
def _top5_error(experiment: Experiment) -> float:
    """Test samples whose class is not among the five likeliest, %."""
    model, split = experiment.training.model.eval(), experiment.data.test
    wrong = 0
    for inputs, targets in split.batches(_BATCH):
        best = model(inputs).topk(5).indices
        wrong += int((best != targets[:, None]).all(1).sum())
    return 100 * wrong / len(split)


def _has_convolutions(experiment: Experiment) -> None:
    if not any(isinstance(module, _ConvNd) for module in experiment.training.model.modules()):
        raise ArgumentError(
            f"--analyse speedup: {experiment.settings.network.name} has no convolution to estimate one for"
        )


def _has_classes(experiment: Experiment) -> None:
    if experiment.data.classes < 5:
        raise ArgumentError(
            f"--analyse top5_error: {experiment.data.name} has {experiment.data.classes} classes only"
        )


def _nothing(experiment: Experiment) -> None:
    pass


@dataclass(frozen=True)
class Analysis:
    """One of them.

    Attributes:
        measure: what it finds on a trained network.
        check: raises an ArgumentError where it could not, before the network is trained.
    """

    measure: Callable[[Experiment], Any]
    check: Callable[[Experiment], None] = _nothing


ANALYSES: dict[str, Analysis] = {
    "specialisation": Analysis(_specialisation),
    "speedup": Analysis(_speedup, _has_convolutions),
    "top5_error": Analysis(_top5_error, _has_classes),
}
