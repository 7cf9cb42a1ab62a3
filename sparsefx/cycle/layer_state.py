"""What a cycle knows of one layer: plain tensors, no module and no optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerState:
    """One layer as the prune, redistribute and grow functions see it.

    Attributes:
        name: the layer's name, for messages and records.
        weight: the weight, shape ``S``, zero where ``mask`` is False.
        mask: bool, shape ``S``, True where the weight is active.
        momentum: the smoothed gradient, signed and finite, shape ``S``; None if nobody keeps one.
        gradient: the gradient of the last backward pass, finite, shape ``S``; None if there is none.
        stored: the weight with the values that its inactive positions keep, shape ``S``; None for a
            method that keeps none.
        backward: bool, shape ``S``, the weights that learn, active or not; None where all do.
        sign: int8, shape ``S``, the sign 1 or -1 that each position is bound to; None for a method
            without.
        explored: bool, shape ``S``, True where the weight was ever active; None if nobody keeps count.
        removed: bool, shape ``S``, what this very update has pruned; None before it has.
    """

    name: str
    weight: Tensor
    mask: Tensor
    momentum: Tensor | None = None
    gradient: Tensor | None = None
    stored: Tensor | None = None
    backward: Tensor | None = None
    sign: Tensor | None = None
    explored: Tensor | None = None
    removed: Tensor | None = None

    @property
    def numel(self) -> int:
        """Number of positions, active or not."""
        return self.mask.numel()

    @cached_property
    def active(self) -> int:
        """Number of active positions."""
        return int(self.mask.sum())

    @property
    def free(self) -> int:
        """Number of inactive positions, which is how many weights could still be grown."""
        return self.numel - self.active

    def with_mask(self, mask: Tensor) -> LayerState:
        """The same layer under another mask."""
        return replace(self, mask=mask)

    def without(self, removed: Tensor) -> LayerState:
        """The same layer after some active positions were removed."""
        return replace(self, mask=self.mask & ~removed, removed=removed)
