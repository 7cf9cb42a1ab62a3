"""Methods of sparse training by name, as data, and one way to run them all.

``presets`` holds a row for each method, a ``Method`` (``row``) of a few ``parts``; ``options`` finds the
parts' attributes by name. ``training`` runs any row; ``sparse_momentum`` is the paper's, as an optimizer.

Stands above ``cycle``, ``optim``, ``pruning``, ``scores`` and ``regularisers``. To add a method: a row in
``presets``.
"""

from sparsefx.methods.parts import (
    FallingDensity,
    FirstMasks,
    Penalty,
    Regrowth,
    Sparsity,
    Updates,
    WeightRules,
)
from sparsefx.methods.presets import METHODS, method
from sparsefx.methods.rounds import Rounds
from sparsefx.methods.row import Method
from sparsefx.methods.training import Training

__all__ = [
    "METHODS",
    "FallingDensity",
    "FirstMasks",
    "Method",
    "Penalty",
    "Regrowth",
    "Rounds",
    "Sparsity",
    "Training",
    "Updates",
    "WeightRules",
    "method",
]
