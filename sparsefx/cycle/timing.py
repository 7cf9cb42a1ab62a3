"""At which steps of training the masks are updated: pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from sparsefx.errors import ArgumentError

Chance = Callable[[int], float]


@dataclass(frozen=True)
class Timing:
    """When updates happen.

    Attributes:
        every: steps between two updates, ``"epoch"`` for one at the end of each, or a tuple of
            ``(fraction, steps)``: so many steps from this fraction of training on.
        first: fraction of training before which there is none, in [0, 1].
        last: fraction of training after which there is none, in [0, 1].
        epochs: with ``every="epoch"``, how many epochs between two updates.
        at_last: whether there may be one at the very end of that time, too. Weights that start at 0 then
            would not be trained; weights that are only removed may be.
        chance: the probability of an update at each step that is due, as a function of the step; None: 1.
    """

    every: int | Literal["epoch"] | tuple[tuple[float, int], ...] = "epoch"
    first: float = 0.0
    last: float = 1.0
    epochs: int = 1
    at_last: bool = False
    chance: Chance | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= 1:
            raise ArgumentError(
                f"first={self.first!r} and last={self.last!r} are not 0 <= first <= last <= 1"
            )
        if isinstance(self.every, int) and (isinstance(self.every, bool) or self.every < 1):
            raise ArgumentError(f"every={self.every!r} is not a whole number of at least 1")
        if isinstance(self.every, str) and self.every != "epoch":
            raise ArgumentError(f"every={self.every!r} is neither a number of steps nor 'epoch'")


@dataclass(frozen=True)
class Clock:
    """A timing in a training of known length.

    Attributes:
        timing: when updates happen.
        steps: optimizer steps of the whole training.
        epoch_steps: optimizer steps of an epoch.
    """

    timing: Timing
    steps: int
    epoch_steps: int

    def is_due(self, step: int, generator: torch.Generator | None = None) -> bool:
        """Whether there is an update after so many steps, from 1; draws if the timing leaves it to chance."""
        if not self._is_due(step):
            return False
        chance = self.timing.chance
        return chance is None or float(torch.rand((), generator=generator)) < chance(step)

    def progress(self, step: int, cycle: int = 0) -> float:
        """Fraction of the time with updates that is over, in [0, 1]; 1 at the last update or the end."""
        first, last = self._first, self._last_due if self.timing.at_last else self._last
        if step >= last:
            return 1.0
        return min(1.0, max(0.0, (step - first) / max(1.0, last - first)))

    @property
    def _first(self) -> float:
        return self.timing.first * self.steps

    @property
    def _last(self) -> float:
        return self.timing.last * self.steps

    @property
    def _last_due(self) -> int:
        """The step of the last update."""
        period = self._period(int(self._last))
        return int(self._last) // period * period

    def _is_due(self, step: int) -> bool:
        if step % self._period(step) or step < self._first:
            return False
        return step <= self._last if self.timing.at_last else step < self._last

    def _period(self, step: int) -> int:
        every = self.timing.every
        if isinstance(every, tuple):
            return [steps for fraction, steps in every if step >= fraction * self.steps][-1]
        return self.timing.epochs * self.epoch_steps if every == "epoch" else every
