"""Evaluation: how often a network is wrong on some data, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from sparsefx.experiments.data import Split
from sparsefx.experiments.run.settings import Settings

_BATCH = 1000


@dataclass(frozen=True)
class Score:
    """How good a network is on some data.

    Attributes:
        error: wrong answers, %.
        loss: mean cross-entropy.
    """

    error: float
    loss: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, settings: Settings) -> Score:
    """Error and loss on a part of the data; leaves the model in evaluation mode.

    Args:
        model: the network, on the device of ``settings``.
        split: the data.
        settings: device, precision and memory format.
    """
    model.eval()
    wrong = torch.zeros((), dtype=torch.int64, device=settings.device)
    loss = torch.zeros((), dtype=torch.float64, device=settings.device)
    for inputs, targets in split.batches(_BATCH):
        with settings.autocast():
            output = model(settings.formatted(inputs)).float()
        wrong += (output.argmax(1) != targets).sum()
        loss += F.cross_entropy(output, targets, reduction="sum").double()
    return Score(100 * int(wrong) / len(split), float(loss) / len(split))
