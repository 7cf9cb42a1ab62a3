"""Analyses of a run, by name: what they measure on the trained network, as the ledger keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd

from sparsefx.analyses.specialisation import class_specialisation
from sparsefx.errors import ArgumentError
from sparsefx.experiments.run.setup import Setup
from sparsefx.report.speedup import estimate_speedup

_BATCH = 500


def _specialisation(setup: Setup) -> dict[str, Any]:
    """Class specialisation over the whole training set (Dettmers & Zettlemoyer 2019, section 5.2)."""
    preactivated = setup.name.startswith("wrn")
    specialisation = class_specialisation(
        setup.model,
        setup.data.train.batches(_BATCH),
        setup.data.classes,
        where="convolution inputs" if preactivated else "relu outputs",
    )
    return specialisation.as_dict()


def _speedup(setup: Setup) -> dict[str, Any]:
    """Estimates for sparse and for dense convolutions (section 4.1), on one training batch."""
    inputs, _ = next(iter(setup.data.train.batches(setup.settings.recipe.batch_size)))
    kinds = {"weights": False, "activations": True}
    return {
        name: estimate_speedup(setup.model, (inputs,), activations=activations).as_dict()
        for name, activations in kinds.items()
    }


@torch.no_grad()
def _top5_error(setup: Setup) -> float:
    """Test samples whose class is not among the five likeliest, %."""
    model, split = setup.model.eval(), setup.data.test
    wrong = 0
    for inputs, targets in split.batches(_BATCH):
        best = model(inputs).topk(5).indices
        wrong += int((best != targets[:, None]).all(1).sum())
    return 100 * wrong / len(split)


def _has_convolutions(setup: Setup) -> None:
    if not any(isinstance(module, _ConvNd) for module in setup.model.modules()):
        raise ArgumentError(f"--analyse speedup: {setup.name} has no convolution to estimate one for")


def _has_classes(setup: Setup) -> None:
    if setup.data.classes < 5:
        raise ArgumentError(f"--analyse top5_error: {setup.data.name} has {setup.data.classes} classes only")


def _nothing(setup: Setup) -> None:
    pass


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Attributes:
        measure: what it finds on a trained network.
        check: raises an ArgumentError where it could not, before the network is trained.
    """

    measure: Callable[[Setup], Any]
    check: Callable[[Setup], None] = _nothing


ANALYSES: dict[str, Analysis] = {
    "specialisation": Analysis(_specialisation),
    "speedup": Analysis(_speedup, _has_convolutions),
    "top5_error": Analysis(_top5_error, _has_classes),
}
