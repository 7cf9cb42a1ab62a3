"""What a cycle knows of one layer: plain tensors, no module and no optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sparsefx.cycle.positions.block import Block
from sparsefx.cycle.positions.select import select_largest
from sparsefx.cycle.positions.select_across import select_largest_across
from sparsefx.errors import CycleError


@dataclass(frozen=True, eq=False)
class LayerState:
    """One layer as the prune, redistribute and grow functions see it.

    Of a layer that is sharded over processes each process sees a block, and ``S`` is the block's shape. What
    only compares positions needs not care; what counts, adds up or chooses asks the methods here, which
    answer for the full layer.

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
        block: which part of the layer this is; None if it is all of it.
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
    block: Block | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the full layer."""
        return self.mask.shape if self.block is None else self.block.shape

    @property
    def numel(self) -> int:
        """Number of positions in the full layer, active or not."""
        return self.shape.numel()

    @cached_property
    def active(self) -> int:
        """Number of active positions in the full layer."""
        return self.count(self.mask)

    @property
    def free(self) -> int:
        """Number of inactive positions, which is how many weights could still be grown."""
        return self.numel - self.active

    def count(self, positions: Tensor) -> int:
        """Number of True positions in the full layer, of a bool tensor of shape ``S``."""
        return int(self._sum(positions.count_nonzero()))  # a third of the time of sum()

    def mean(self, values: Tensor, where: Tensor) -> float:
        """Mean of values of shape ``S`` where a bool tensor is True, in the full layer; 0 of none."""
        # The sum is taken in float64: in float32 a large layer's mean would depend on the thread count.
        number = self.count(where)
        total = self._sum(values.masked_select(where).sum(dtype=torch.float64))
        return float(total) / number if number else 0.0

    def select_largest(self, scores: Tensor, candidates: Tensor, count: int) -> Tensor:
        """Choose exactly ``count`` candidates of the full layer with the largest scores.

        Args:
            scores: real, no NaN, shape ``S``.
            candidates: bool, shape ``S``; at least ``count`` in the full layer.
            count: how many positions to choose, the same in all processes.

        Returns:
            Bool tensor of shape ``S``; of equal scores the lowest flat index is chosen.
        """
        if self.block is None:
            return select_largest(scores, candidates, count)
        return select_largest_across([scores], [candidates], count, [self.block])[0]

    def must_be_full(self, what: str) -> None:
        """Refuse a sharded layer, on behalf of ``what``, which needs all of it.

        Raises:
            CycleError: it is sharded.
        """
        if self.block is not None:
            raise CycleError(
                f"{what} needs all of layer {self.name!r}, which is sharded over processes; choose another, "
                "or train with DistributedDataParallel"
            )

    def _sum(self, part: Tensor) -> Tensor:
        return part if self.block is None else self.block.sum(part)

    def with_mask(self, mask: Tensor) -> LayerState:
        """The same layer under another mask."""
        return replace(self, mask=mask)

    def without(self, removed: Tensor) -> LayerState:
        """The same layer after some active positions were removed."""
        return replace(self, mask=self.mask & ~removed, removed=removed)


def counts_of(layers: Sequence[LayerState], positions: Sequence[Tensor]) -> list[int]:
    """How many positions are True in each full layer, of bool tensors of the layers' shapes."""
    return [layer.count(some) for layer, some in zip(layers, positions, strict=True)]
