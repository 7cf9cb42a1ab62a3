"""Sparse training inside other people's training loops, and the numbers that it logs.

``lightning``, ``transformers`` and ``accelerate`` here need the package of that name; nothing else does,
and ``import sparsefx`` loads none of them.
"""

from sparsefx.integrations.metrics import CycleLog, cycle_metrics
from sparsefx.integrations.plan import sparse_optimizer
from sparsefx.integrations.writers import CsvWriter, TensorBoardWriter

__all__ = ["CsvWriter", "CycleLog", "TensorBoardWriter", "cycle_metrics", "sparse_optimizer"]
