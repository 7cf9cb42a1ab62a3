"""When in training an update of the masks happens, and what it may remember."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class UpdateContext:
    """What an update knows beside the layers.

    Attributes:
        rate: fraction of a layer's active weights to remove, in [0, 1].
        progress: fraction done of the time in which there are updates, in [0, 1]; 1 at the last one.
        generator: CPU generator for what is random; torch's global one if None.
        notes: what this update remembers from one time to the next, such as a threshold: numbers, strings,
            lists, dicts and tensors, saved with the optimizer's state. Each update has notes of its own,
            which it may write to.
    """

    rate: float = 0.0
    progress: float = 0.0
    generator: torch.Generator | None = None
    notes: dict[str, Any] = field(default_factory=dict)
