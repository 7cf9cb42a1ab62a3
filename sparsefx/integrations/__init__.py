"""Sparse training inside other people's training loops, and the numbers that it logs.

``lightning``, ``transformers`` and ``accelerate`` here need the package of that name; nothing else does,
and ``import sparsefx`` loads none of them.

``plan`` says when a trainer's steps have cycles, ``metrics`` what is logged of one, ``writers`` where to. To
add a framework, write a file that imports it in a ``try`` that raises ``MissingPackageError``, and makes its
optimizer by a ``Plan``; add an extra of its name to ``pyproject.toml`` (and to the extra ``frameworks``), its
module to ``docs/api/integrations.rst`` and a section to ``docs/frameworks.md``.
"""

from sparsefx.integrations.metrics import CycleLog, cycle_metrics
from sparsefx.integrations.plan import sparse_optimizer
from sparsefx.integrations.writers import CsvWriter, TensorBoardWriter

__all__ = ["CsvWriter", "CycleLog", "TensorBoardWriter", "cycle_metrics", "sparse_optimizer"]
