"""Learning-compression: weights pulled, ever harder, towards their own compressed copy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsefx._common.values import check_count
from sparsefx.cycle.positions.select import magnitudes, select_largest
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.regularisers.base import Decision, Regulariser, check_positive

CStep = Callable[[Tensor, float, float], Tensor]
"""From values (N,), the level and mu to the compressed copy (N,) nearest to the values."""


def l0_constraint(values: Tensor, level: float, mu: float) -> Tensor:
    """Keep the ``round(level * N)`` largest magnitudes, in any shape; of equals, the lowest index."""
    everything = torch.ones_like(values, dtype=torch.bool)
    kept = select_largest(magnitudes(values), everything, round(level * values.numel()))
    return values.masked_fill(~kept, 0)


def l0_penalty(values: Tensor, level: float, mu: float) -> Tensor:
    """Hard threshold at sqrt(2 level / mu), elementwise: least level ||t||_0 + mu/2 ||t - values||^2."""
    return values.masked_fill(values.abs() <= math.sqrt(2 * level / mu), 0)


def l1_penalty(values: Tensor, level: float, mu: float) -> Tensor:
    """Soft threshold at level / mu, elementwise: the least of level ||t||_1 + mu/2 ||t - values||^2."""
    return values.sign() * (values.abs() - level / mu).clamp(min=0)


def l1_constraint(values: Tensor, level: float, mu: float) -> Tensor:
    """Projection on the ball ||t||_1 <= level, in any shape, by sorting (Duchi et al. 2008, figure 1)."""
    sizes = values.abs().double()
    if float(sizes.sum()) <= level:
        return values.clone()
    ordered = sizes.sort(descending=True).values
    ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=values.device)
    thresholds = (ordered.cumsum(0) - level) / ranks
    threshold = thresholds[int((ordered > thresholds).sum()) - 1]
    return values.sign() * (sizes - threshold).clamp(min=0).to(values.dtype)


C_STEPS: dict[str, CStep] = {
    "l0_constraint": l0_constraint,
    "l0_penalty": l0_penalty,
    "l1_penalty": l1_penalty,
    "l1_constraint": l1_constraint,
}


class LearningCompression(Regulariser):
    """Minimise the loss of weights w that equal compressed ones t (Carreira-Perpinan & Idelbayev 2018).

    Training is divided into L steps, in which the optimizer lowers the loss plus
    ``mu/2 ||w - t - l/mu||^2``. After the k-th a C step sets t to the compression of ``w - l/mu_k`` and
    the multipliers to ``l - mu_k (w - t)``, and mu grows. Compression is over all layers jointly. The
    decision is t. Start from a trained model: the first t is its direct compression.

    Steps of plain SGD are stable while the learning rate is at most 1/mu; see :meth:`clip_rate`.

    Args:
        model: a trained model, masks all True.
        c_step: ``"l0_constraint"``, ``"l0_penalty"``, ``"l1_penalty"`` or ``"l1_constraint"``.
        level: what the C step keeps to: the density in (0, 1], the penalty's factor (alpha), again the
            penalty's factor, or the radius of the l1 ball.
        c_steps: how many C steps training has, besides the one at the start.
        mu: the first mu.
        growth: mu after a C step over mu before it.
        first: how many times as long as the others the first L step is.
        augmented: use the multipliers l (augmented Lagrangian); False leaves them 0 (quadratic penalty).

    The defaults are those of the authors' LeNet 300-100: 40 C steps, 40 epochs before the first, 20
    before each other one, Nesterov SGD with momentum 0.9 and a learning rate of 0.1 * 0.98^k.

    Raises:
        ArgumentError: an argument is out of range, or the model cannot be used.
    """

    target: Tensor
    """t, shape (N,)."""
    point: Tensor
    """What t was last compressed from, shape (N,)."""
    multipliers: Tensor
    """l, shape (N,)."""

    def __init__(
        self,
        model: nn.Module,
        *,
        c_step: str = "l0_constraint",
        level: float = 0.05,
        c_steps: int = 40,
        mu: float = 9e-5,
        growth: float = 1.1,
        first: float = 2.0,
        augmented: bool = True,
    ) -> None:
        super().__init__(model)
        _check(c_step, level, c_steps, growth)
        check_positive("mu", mu)
        check_positive("first", first)
        self._compress, self._level, self._c_steps = C_STEPS[c_step], level, c_steps
        self._first_mu, self._growth, self._first, self._augmented = mu, growth, first, augmented
        weights = self._weights().detach()
        self.register_buffer("target", self._compress(weights, level, mu))
        self.register_buffer("point", weights)
        self.register_buffer("multipliers", torch.zeros_like(weights))
        self.attach()

    @property
    def mu(self) -> float:
        """The present strength of the pull."""
        return self._mu(self._due(self.progress))

    def clip_rate(self, rate: float) -> float:
        """The learning rate, or 1/mu if that is less: beyond it steps overshoot the target."""
        return min(rate, 1 / self.mu)

    @torch.no_grad()
    def distance(self) -> float:
        """The norm of w - t, which goes to 0 over training."""
        return float((self._weights() - self.target).norm())

    def _mu(self, c_steps: int) -> float:
        return self._first_mu * self._growth**c_steps

    def _due(self, progress: float) -> int:
        """How many C steps belong before this point of training."""
        lengths = progress * (self._first + self._c_steps - 1)
        return min(self._c_steps, max(0, math.floor(lengths - self._first + 1 + 1e-9)))  # for rounding

    def _penalty(self) -> Tensor:
        difference = self._weights() - self.target - self.multipliers / self.mu
        return 0.5 * self.mu * difference.square().sum()

    def _advance(self, before: float) -> None:
        if self._due(self.progress) > self._due(before):
            self._run_c_step(self._mu(self._due(before)))

    @torch.no_grad()
    def _run_c_step(self, mu: float) -> None:
        weights = self._weights()
        self.point.copy_(weights - self.multipliers / mu)
        self.target.copy_(self._compress(self.point, self._level, mu))
        if self._augmented:
            self.multipliers.sub_(mu * (weights - self.target))

    def _decision(self) -> Decision:
        keep = self.target != 0
        return Decision(torch.where(keep, self.target, self.point), magnitudes(self.point), keep)


def _check(c_step: str, level: float, c_steps: int, growth: float) -> None:
    if c_step not in C_STEPS:
        raise unknown_name("c_step", c_step, C_STEPS)
    check_positive("level", level)
    if c_step == "l0_constraint" and level > 1:
        raise ArgumentError(f"level={level!r} is a density for l0_constraint and must be in (0, 1]")
    check_count("c_steps", c_steps)
    if not growth >= 1:
        raise ArgumentError(f"growth={growth!r} is below 1; mu must not fall")
