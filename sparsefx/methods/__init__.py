"""Methods of sparse training by name, as data, and one way to run them all."""

from sparsefx.methods.presets import METHODS, method
from sparsefx.methods.rounds import Rounds
from sparsefx.methods.row import Method
from sparsefx.methods.training import Training

__all__ = ["METHODS", "Method", "Rounds", "Training", "method"]
