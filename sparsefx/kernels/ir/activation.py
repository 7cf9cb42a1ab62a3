"""What a training step applies to each element after sums and normalisation, as data."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Activation:
    """A function, ReLU or one of ReLU's relatives.

    Attributes:
        function: a name in :data:`sparsefx.kernels.ir.function_names.FUNCTION_NAMES`.
        below: what negative elements are multiplied by: 0 as of ReLU, 1 for nothing.
        high: the largest result.
    """

    function: str = "identity"
    below: float = 1.0
    high: float = inf

    @property
    def is_step(self) -> bool:
        """Whether its slope is 0 or 1, and is seen from its result: as of ReLU and ReLU6."""
        return self.function == "identity" and self.below == 0


NO_ACTIVATION = Activation()
RELU = Activation(below=0.0)
