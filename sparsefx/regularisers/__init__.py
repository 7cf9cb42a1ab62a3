"""Regularisers with a final decision: all weights train, the mask is decided at the end."""

from sparsefx.regularisers.base import Decision, Regulariser
from sparsefx.regularisers.hard_concrete import HardConcrete
from sparsefx.regularisers.learning_compression import C_STEPS, CStep, LearningCompression
from sparsefx.regularisers.mixture import Mixture
from sparsefx.regularisers.soft_weight_sharing import SoftWeightSharing
from sparsefx.regularisers.variational_dropout import VariationalDropout

REGULARISERS: dict[str, type[Regulariser]] = {
    "learning_compression": LearningCompression,
    "soft_weight_sharing": SoftWeightSharing,
    "variational_dropout": VariationalDropout,
    "hard_concrete": HardConcrete,
}

__all__ = [
    "C_STEPS",
    "REGULARISERS",
    "CStep",
    "Decision",
    "HardConcrete",
    "LearningCompression",
    "Mixture",
    "Regulariser",
    "SoftWeightSharing",
    "VariationalDropout",
]
