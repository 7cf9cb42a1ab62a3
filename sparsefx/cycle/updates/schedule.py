"""At which steps of training the masks are updated: pure functions of the step.

A :class:`Schedule` is asked at each step. :class:`Clock` follows a :class:`Timing` in a training of known
length, :class:`DeferredSchedule` one whose length is told later, and :class:`CountedCycles` counts updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Literal, Protocol

import torch

from sparsefx._common.values import is_count, is_number
from sparsefx.errors import ArgumentError

Chance = Callable[[int], float]


class Schedule(Protocol):
    """When updates happen."""

    def is_due(self, step: int, generator: torch.Generator | None = None) -> bool:
        """Whether there is an update after so many steps, from 1."""
        ...

    def progress(self, step: int, cycle: int) -> float:
        """Fraction of the time with updates that is over after so many steps, at this update, in [0, 1]."""
        ...

    def next_due(self, step: int, cycles: Sequence[int]) -> float | None:
        """The first step from this one on after which there may be an update.

        Args:
            step: the number of a step, from 1.
            cycles: the steps after which there were updates, ascending.

        Returns:
            Its number; infinity where there is none any more, None where nothing is known.
        """
        ...


@dataclass(frozen=True)
class Timing:
    """When updates happen.

    Attributes:
        every: steps between two updates, ``"epoch"`` for one at the end of each, or a tuple of
            ``(fraction, steps)``: so many steps from this fraction of training on.
        first: fraction of training before which there is none, in [0, 1].
        last: fraction of training after which there is none, in [0, 1].
        epochs: with ``every="epoch"``, how many epochs between two updates.
        at_start: whether there is one before the first step, too.
        at_last: whether there may be one at the very end of that time, too. Weights that start at 0 then
            would not be trained; weights that are only removed may be.
        chance: the probability of an update at each step that is due, as a function of the step; None: 1.
    """

    every: int | Literal["epoch"] | tuple[tuple[float, int], ...] = "epoch"
    first: float = 0.0
    last: float = 1.0
    epochs: int = 1
    at_start: bool = False
    at_last: bool = False
    chance: Chance | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.first) and is_number(self.last)) or not 0 <= self.first <= self.last <= 1:
            raise ArgumentError(
                f"first={self.first!r} and last={self.last!r} are not 0 <= first <= last <= 1"
            )
        if self.chance is not None and not callable(self.chance):
            raise ArgumentError(f"chance={self.chance!r} is neither None nor a function of the step")
        if isinstance(self.every, tuple):
            if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in self.every):
                raise ArgumentError(f"every={self.every!r} holds no pairs: ((0.0, 100), (0.5, 200))")
            starts = [start for start, _ in self.every]
            if not starts or starts[0] != 0 or starts != sorted(starts):
                raise ArgumentError(
                    f"every={self.every!r} must begin at 0 and ascend: ((0.0, 100), (0.5, 200))"
                )
            periods = [steps for _, steps in self.every]
        else:
            periods = [] if self.every == "epoch" else [self.every]
        for period in (*periods, self.epochs):
            if not is_count(period):
                raise ArgumentError(
                    f"every={self.every!r}, epochs={self.epochs!r}: {period!r} is neither 'epoch' nor a "
                    "whole number of at least 1"
                )


NEVER = Timing(first=1.0)
"""No update at any step."""


@dataclass(frozen=True)
class Clock:
    """The schedule of a timing in a training of known length.

    Attributes:
        timing: when updates happen.
        steps: optimizer steps of the training.
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

    def next_due(self, step: int, cycles: Sequence[int] = ()) -> float:
        """The first step from this one on after which there may be an update; infinity for none."""
        while step <= self._last:  # by periods to the end
            step += -step % self._period(step)
            if self._is_due(step):
                return step
            step += 1
        return inf

    @property
    def is_ever_due(self) -> bool:
        """Whether there is any update in the training."""
        return self.timing.at_start or self._last_due > 0

    @property
    def _first(self) -> float:
        return self.timing.first * self.steps

    @property
    def _last(self) -> float:
        return self.timing.last * self.steps

    @cached_property
    def _last_due(self) -> int:
        """The step of the last update; 0 without any."""
        return next((step for step in range(int(self._last), 0, -1) if self._is_due(step)), 0)

    def _is_due(self, step: int) -> bool:
        if step % self._period(step) or step < self._first:
            return False
        return step <= self._last if self.timing.at_last else step < self._last

    def _period(self, step: int) -> int:
        every = self.timing.every
        if isinstance(every, tuple):
            return [steps for fraction, steps in every if step >= fraction * self.steps][-1]
        return self.timing.epochs * self.epoch_steps if every == "epoch" else every


@dataclass(frozen=True)
class CountedCycles:
    """The schedule of updates that are counted rather than timed.

    Attributes:
        cycles: how many there will be.
        every: steps between two; None leaves them to calls of ``cycle()``.
    """

    cycles: int
    every: int | None = None

    def is_due(self, step: int, generator: torch.Generator | None = None) -> bool:
        """Whether there is an update after so many steps, from 1."""
        return self.every is not None and step % self.every == 0

    def progress(self, step: int, cycle: int) -> float:
        """The fraction of the updates that are done with this one, in [0, 1]."""
        return min(1.0, cycle / self.cycles)

    def next_due(self, step: int, cycles: Sequence[int] = ()) -> float | None:
        """The first step from this one on with an update.

        Those that are left to calls are taken to be as far apart as the last two; before the first, nothing
        is known.
        """
        if self.every is not None:
            return step + -step % self.every
        if not cycles:
            return None
        before = cycles[-2] if len(cycles) > 1 else 0
        return max(step, 2 * cycles[-1] - before)


class DeferredSchedule:
    """A schedule that is known only when training begins, and stands in its place until then.

    Args:
        missing: what the error says when it is asked earlier.
    """

    def __init__(self, missing: str) -> None:
        self._missing = missing
        self._schedule: Schedule | None = None

    def __repr__(self) -> str:
        return repr(self._schedule)

    def begin(self, schedule: Schedule) -> None:
        """Follow this schedule from now on."""
        self._schedule = schedule

    def is_due(self, step: int, generator: torch.Generator | None = None) -> bool:
        """Whether there is an update after so many steps, from 1."""
        return self._begun.is_due(step, generator)

    def progress(self, step: int, cycle: int = 0) -> float:
        """Fraction of the time with updates that is over, in [0, 1]."""
        return self._begun.progress(step, cycle)

    def next_due(self, step: int, cycles: Sequence[int] = ()) -> float | None:
        """The first step from this one on with an update; None where that is not known yet."""
        return None if self._schedule is None else self._schedule.next_due(step, cycles)

    @property
    def _begun(self) -> Schedule:
        if self._schedule is None:
            raise ArgumentError(self._missing)
        return self._schedule
