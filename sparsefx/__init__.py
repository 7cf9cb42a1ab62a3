"""sparsefx: a compiler for sparse neural networks in PyTorch.

``sparsify`` masks a model, ``SparseMomentum`` trains it sparse from the first step to the last,
``export`` removes the channels that do nothing, ``save`` and ``load`` keep the result in a file.
"""

from sparsefx import plot
from sparsefx.archive import load, save
from sparsefx.averaged_model import AveragedModel
from sparsefx.cycle import Clock, Timing
from sparsefx.errors import (
    ArchiveError,
    ArgumentError,
    CheckpointError,
    CycleError,
    InvariantError,
    LedgerError,
    MissingPackageError,
    SparseFxError,
)
from sparsefx.export import export
from sparsefx.export_report import ExportReport
from sparsefx.layers import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
    MaskedLayer,
    MaskedLinear,
)
from sparsefx.masks import MaskedWeight, apply_masks, masked_weights
from sparsefx.methods import METHODS, Method, Training, method
from sparsefx.model_report import ModelReport
from sparsefx.optimizer import SparseMomentum
from sparsefx.pruning import prune, prune_below
from sparsefx.report import report
from sparsefx.rules import Rules
from sparsefx.sparse_optimizer import SparseOptimizer
from sparsefx.sparsify import sparsify
from sparsefx.speedup import SpeedupEstimate, estimate_speedup
from sparsefx.training_state import TrainingState

__all__ = [
    "METHODS",
    "ArchiveError",
    "ArgumentError",
    "AveragedModel",
    "CheckpointError",
    "Clock",
    "CycleError",
    "ExportReport",
    "InvariantError",
    "LedgerError",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedConvTranspose1d",
    "MaskedConvTranspose2d",
    "MaskedConvTranspose3d",
    "MaskedLayer",
    "MaskedLinear",
    "MaskedWeight",
    "Method",
    "MissingPackageError",
    "ModelReport",
    "Rules",
    "SparseFxError",
    "SparseMomentum",
    "SparseOptimizer",
    "SpeedupEstimate",
    "Timing",
    "Training",
    "TrainingState",
    "apply_masks",
    "estimate_speedup",
    "export",
    "load",
    "masked_weights",
    "method",
    "plot",
    "prune",
    "prune_below",
    "report",
    "save",
    "sparsify",
]

__version__ = "0.1.0"
