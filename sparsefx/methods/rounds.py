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


@dataclass(frozen=True)
class RoundPlan:
    """The rounds of a training of known length, by their number from 0.

    Attributes:
        rounds: what happens between rounds; None if there is only one.
        first_steps: optimizer steps of the first.
    """

    rounds: Rounds | None
    first_steps: int

    @property
    def count(self) -> int:
        """How many rounds there are."""
        return 1 if self.rounds is None else self.rounds.count

    @property
    def rewinds(self) -> bool:
        """Whether later rounds go back to a step of the first one."""
        return self.rounds is not None and self.rounds.rewind is not None

    @property
    def rewound_to(self) -> int:
        """The step that later rounds begin at."""
        if self.rounds is None or self.rounds.rewind is None:
            return 0
        return round(self.rounds.rewind * self.first_steps)

    def steps(self, round_: int) -> int:
        """Optimizer steps of a round; a rewound one lacks those before the point it was set back to."""
        if self.rounds is None or round_ == 0:
            return self.first_steps
        return max(1, round(self.rounds.retraining * self.first_steps) - self.rewound_to)

    def first_step(self, round_: int) -> int:
        """The step at which a round begins, where the learning rate's schedule takes up."""
        return self.rewound_to if round_ else 0

    def learning_rate(self, round_: int) -> float:
        """Factor of the learning rate in a round."""
        return 1.0 if self.rounds is None or round_ == 0 else self.rounds.learning_rate

    def is_dense(self, round_: int) -> bool:
        """Whether a round trains the network as it is, before any of the method's own updates or penalty."""
        return self.rounds is not None and round_ == 0
