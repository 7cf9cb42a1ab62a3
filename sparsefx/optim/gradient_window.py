"""In which steps an accelerated model computes the gradients of inactive weights, which growth reads.

Momentum forgets. After n steps a gradient has the weight momentum^n in it, so what was computed longer ago
than it takes to come to 1% changes nothing that matters. Only the steps of a *window* before each cycle
need the gradients of all weights; in the others the weights stay packed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from sparsefx._common.values import is_count
from sparsefx.cycle import Schedule
from sparsefx.errors import ArgumentError
from sparsefx.optim.gradients.active_gradients import mixes_positions
from sparsefx.optim.rules import Rules

Window = int | Literal["auto"]
"""Steps before a cycle; ``"auto"`` chooses by the optimizer's momentum."""

_FORGOTTEN = 0.01
_MOMENTUM = 0.9  # of averages that sparsefx keeps for optimizers without momentum


class GradientWindow:
    """Says of each step whether gradients of inactive weights are wanted.

    Args:
        window: steps before a cycle, 0 for none. ``"auto"``: as many as the momentum takes to forget to 1%
            (44 for 0.9); 1 where momentum of inactive weights does not matter; 0 where masks never change.
        rules: of the method.
        schedule: when updates happen.
        optimizer: the wrapped optimizer.

    Raises:
        ArgumentError: ``window`` is neither ``"auto"`` nor a number of steps.
    """

    def __init__(self, window: Window, rules: Rules, schedule: Schedule, optimizer: Optimizer) -> None:
        if window != "auto" and not (window == 0 or is_count(window)):
            raise ArgumentError(f"window={window!r} is neither 'auto' nor a number of steps from 0 on")
        self._schedule = schedule
        self._always = bool(rules.memory or rules.gradient_terms) or mixes_positions(optimizer)
        self._steps = _steps(rules, optimizer) if window == "auto" else int(window)
        self._next: float | None = 0

    @property
    def steps(self) -> float:
        """Steps before each cycle; infinite where all steps want the gradients."""
        return math.inf if self._always else self._steps

    def wants(self, step: int, cycles: Sequence[int]) -> bool:
        """Whether a step does.

        Args:
            step: its number, from 1.
            cycles: the steps after which there were cycles, ascending.
        """
        if self._always or not self._steps:
            return self._always
        if self._next is None or step > self._next:
            self._next = self._next_due(step, cycles)
        return self._next is None or step > self._next - self._steps

    def forget(self) -> None:
        """Ask the schedule anew, as after a cycle or a loaded state."""
        self._next = 0

    def _next_due(self, step: int, cycles: Sequence[int]) -> float | None:
        """The step of the next cycle, infinite for none; None where nothing is known."""
        ask: Any = getattr(self._schedule, "next_due", None)
        due: float | None = None if ask is None else ask(step, cycles)
        return due


def _steps(rules: Rules, optimizer: Optimizer) -> int:
    if not rules.updates:
        return 0
    if not rules.needs_momentum():
        return 1
    kept = [_kept(group) for group in optimizer.param_groups]
    momentum = min(max(kept, default=_MOMENTUM), 0.999)
    return max(1, math.ceil(math.log(_FORGOTTEN) / math.log(momentum))) if momentum > 0 else 1


def _kept(group: dict[str, Any]) -> float:
    """The part of its momentum that a step keeps."""
    betas = group.get("betas")
    momentum = betas[0] if isinstance(betas, tuple | list) and betas else group.get("momentum")
    return float(momentum) if momentum else _MOMENTUM
