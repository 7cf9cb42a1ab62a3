"""Scores ("saliencies"): how much each weight is worth keeping, a file each.

A score takes a :class:`ScoringContext` and returns, for each masked weight's name, a tensor of its shape,
real and finite; higher is more worth keeping. It leaves the model as it found it. Scores know nothing of
how many weights stay, nor of layers' shares: that is :func:`sparsefx.prune`.
"""

from collections.abc import Callable

from torch import Tensor

from sparsefx.scores.curvature import CURVATURES, Curvature
from sparsefx.scores.grasp import balanced_batch, grasp
from sparsefx.scores.layerwise_obs import compensated_weights, layerwise_obs
from sparsefx.scores.magnitude import magnitude
from sparsefx.scores.optimal_brain_damage import optimal_brain_damage
from sparsefx.scores.random import random
from sparsefx.scores.scoring_context import Batch, Loss, ScoringContext
from sparsefx.scores.snip import snip
from sparsefx.scores.synflow import synflow

Score = Callable[[ScoringContext], dict[str, Tensor]]

SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "random": random,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "optimal_brain_damage": optimal_brain_damage,
    "layerwise_obs": layerwise_obs,
}

__all__ = [
    "CURVATURES",
    "SCORES",
    "Batch",
    "Curvature",
    "Loss",
    "Score",
    "ScoringContext",
    "balanced_batch",
    "compensated_weights",
    "grasp",
    "layerwise_obs",
    "magnitude",
    "optimal_brain_damage",
    "random",
    "snip",
    "synflow",
]
