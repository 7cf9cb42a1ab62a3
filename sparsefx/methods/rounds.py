"""Rounds of training, and what happens between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsefx._common.values import check_count, is_number
from sparsefx.cycle.updates.densities import geometric
from sparsefx.errors import ArgumentError


@dataclass(frozen=True)
class Rounds:
    """A network is trained dense, pruned and trained again.

    Attributes:
        prunings: how many times it is pruned, by a score, between two rounds; 0 where the second round is
            trained by the method's own rules instead.
        score: by which to prune, a name in :data:`sparsefx.scores.SCORES`.
        scope: whether a pruning compares the weights of a ``"layer"`` or of all: ``"global"``.
        compensate: move the remaining weights so that each layer's output changes least.
        rewind: set the weights that are left to what they were after this fraction of the first round, in
            [0, 1), with the optimizer's state and the learning rate of that time; None leaves them trained.
        retraining: the length of a later round, as a fraction of the first.
        learning_rate: factor of the learning rate in later rounds.
    """

    prunings: int = 1
    score: str = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    compensate: bool = False
    rewind: float | None = None
    retraining: float = 1.0
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        check_count("prunings", self.prunings, 0)
        for name in ("retraining", "learning_rate"):
            if not is_number(getattr(self, name)) or not getattr(self, name) > 0:
                raise ArgumentError(f"{name}={getattr(self, name)!r} is not above 0")
        if self.rewind is not None and not (is_number(self.rewind) and 0 <= self.rewind < self.retraining):
            raise ArgumentError(
                f"rewind={self.rewind!r} is neither None nor in [0, {self.retraining}), a round's length"
            )

    @property
    def count(self) -> int:
        """How many rounds there are."""
        return self.prunings + 1 if self.prunings else 2

    def density(self, round_: int, final: float) -> float:
        """The density in a round, from 0; every pruning removes the same fraction of what is left."""
        return geometric(1.0, final, round_ / self.prunings) if self.prunings else 1.0
