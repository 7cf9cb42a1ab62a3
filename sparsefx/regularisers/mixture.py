"""A mixture of one-dimensional Gaussians, and the joining of components that are alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 8192  # values, of each of which there are a few numbers a component at once
_SAME = 1e-10  # components with a divergence below this are one


@dataclass(frozen=True)
class Mixture:
    """A mixture of J Gaussians.

    Attributes:
        log_proportions: shape (J,), log-sum-exp 0.
        means: shape (J,).
        log_precisions: shape (J,): minus the log of each variance.
    """

    log_proportions: Tensor
    means: Tensor
    log_precisions: Tensor

    def joint(self, values: Tensor) -> Tensor:
        """log(proportion_j * N(value | mean_j, variance_j)), from shape (N,) to (N, J)."""
        scaled = (values.unsqueeze(-1) - self.means) * (0.5 * self.log_precisions).exp()
        constants = self.log_proportions + 0.5 * (self.log_precisions - math.log(2 * math.pi))
        return torch.addcmul(constants, scaled, scaled, value=-0.5)

    def log_prob(self, values: Tensor) -> Tensor:
        """The log density of each value, shape (N,)."""
        return self.joint(values).logsumexp(-1)

    def total_log_prob(self, values: Tensor) -> Tensor:
        """The sum of the values' log densities; several times as fast as through :meth:`log_prob`.

        Its gradient is made along with it, in blocks that stay in the caches.
        """
        total: Tensor = _TotalLogProb.apply(values, *self._parts())
        return total

    def responsibilities(self, values: Tensor) -> Tensor:
        """The probability of each component given a value, shape (N, J)."""
        return self.joint(values).softmax(-1)

    def merged(self) -> Mixture:
        """Join components until none are alike, the nearest pair first.

        A joint component has the sum of the proportions and their weighted mean of means and precisions.
        """
        mixture = self
        while len(mixture.means) > 1:
            divergences = mixture.divergences().fill_diagonal_(math.inf)
            nearest = int(divergences.argmin())
            if float(divergences.flatten()[nearest]) >= _SAME:
                break
            mixture = mixture._joined(*sorted(divmod(nearest, len(mixture.means))))
        return mixture

    def divergences(self) -> Tensor:
        """The Kullback-Leibler divergence from component i (row) to component j (column), shape (J, J)."""
        log_ratio = self.log_precisions.unsqueeze(1) - self.log_precisions
        distances = (self.means.unsqueeze(1) - self.means).square()
        return 0.5 * (log_ratio + (-log_ratio).exp() + self.log_precisions.exp() * distances - 1)

    def _joined(self, first: int, second: int) -> Mixture:
        pair = [first, second]
        proportions = self.log_proportions[pair].exp()
        shares = proportions / proportions.sum()
        values = (
            proportions.sum().log(),
            shares @ self.means[pair],
            (shares @ self.log_precisions[pair].exp()).log(),
        )
        return Mixture(
            *(
                torch.cat([part[:first], value.view(1), part[first + 1 : second], part[second + 1 :]])
                for part, value in zip(self._parts(), values, strict=True)
            )
        )

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.log_proportions, self.means, self.log_precisions


class _TotalLogProb(torch.autograd.Function):
    """The sum of the log densities of values, shape (N,), under a mixture's parts."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, log_proportions: Tensor, means: Tensor, log_precisions: Tensor
    ) -> Tensor:
        precisions, of_values, total = log_precisions.exp(), torch.empty_like(values), values.new_zeros(())
        constants = log_proportions + 0.5 * (log_precisions - math.log(2 * math.pi))
        shift, scale, constants = means.unsqueeze(1), (-0.5 * precisions).unsqueeze(1), constants.unsqueeze(1)
        # exp takes several times as long where its result is no normal number, and these are as good as 0
        least = math.log(torch.finfo(values.dtype).tiny) + 8
        first, second, third = values.new_zeros(3, len(means)).unbind()  # moments of what each one explains
        for block, gradient in zip(values.split(_BLOCK), of_values.split(_BLOCK), strict=True):
            distances = block - shift  # components come first: sums over them, and over values, are fast so
            shares = torch.addcmul(constants, distances * scale, distances)
            largest = shares.amax(0)
            whole = shares.sub_(largest).clamp_(min=least).exp_().sum(0)
            total += (largest + whole.log()).sum()
            shares /= whole
            pulls = shares * distances
            torch.mv(pulls.t(), precisions, out=gradient).neg_()
            first += shares.sum(1)
            second += pulls.sum(1)
            third += pulls.mul_(distances).sum(1)
        ctx.save_for_backward(of_values, first, precisions * second, 0.5 * (first - precisions * third))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient * saved for saved in ctx.saved_tensors)
