"""sparsefx: a compiler for sparse neural networks in PyTorch.

``sparsify`` masks a model. ``SparseMomentum`` trains it sparse from the first step to the last. ``export``
removes the channels that do nothing. ``save`` and ``load`` keep the result in a file.
"""

from sparsefx import plot
from sparsefx._common.version import VERSION
from sparsefx.accelerate import accelerate
from sparsefx.archive import load, save
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
from sparsefx.export_passes import ExportOptions, default_passes
from sparsefx.masking.averaged_model import AveragedModel
from sparsefx.masking.layers import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
    MaskedLayer,
    MaskedLinear,
)
from sparsefx.masking.masks import MaskedWeight, apply_masks, masked_weights
from sparsefx.masking.sparsify import sparsify
from sparsefx.methods import METHODS, Method, Training, method
from sparsefx.methods.sparse_momentum import SparseMomentum
from sparsefx.optim.rules import Rules
from sparsefx.optim.sparse_optimizer import SparseOptimizer
from sparsefx.optim.training_state import TrainingState
from sparsefx.pruning.prune import prune, prune_below
from sparsefx.report.export_report import ExportReport
from sparsefx.report.model_report import ModelReport
from sparsefx.report.report import report
from sparsefx.report.speedup import SpeedupEstimate, estimate_speedup

__all__ = [
    "METHODS",
    "ArchiveError",
    "ArgumentError",
    "AveragedModel",
    "CheckpointError",
    "Clock",
    "CycleError",
    "ExportOptions",
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
    "accelerate",
    "apply_masks",
    "default_passes",
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

__version__ = VERSION
