"""Soft weight-sharing: a mixture of Gaussians, one of them at 0, learned as the prior of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.regularisers.base import Decision, Regulariser, check_positive
from sparsefx.regularisers.mixture import Mixture


class SoftWeightSharing(Regulariser):
    """Retrain weights under a learned mixture prior and quantise them to its means (Ullrich et al. 2017).

    The penalty is ``tau / samples`` times minus the log of the prior of all weights and of the Gamma
    priors of the precisions. Component 0 has mean 0 and a fixed proportion near 1. At the decision alike
    components are merged, the mean nearest to 0 becomes 0, and each weight takes the mean of the
    component that is most responsible for it; what the zero component takes is pruned. Start from a
    trained model.

    The paper trains the weights by Adam at 5e-4, in 30 epochs of batches of 256.

    Args:
        model: a trained model, masks all True.
        samples: how many examples the training set has.
        components: J, the zero component included.
        zero_proportion: the fixed proportion of component 0, in (0, 1).
        span: the other means start evenly spread over [-span, span].
        deviation: the standard deviation of every component at the start.
        tau: the prior's strength.
        zero_prior: shape and rate of the Gamma prior on the precision of component 0.
        prior: those of the other components.

    Raises:
        ArgumentError: an argument is out of range, or the model cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int,
        components: int = 16,
        zero_proportion: float = 0.99,
        span: float = 0.6,
        deviation: float = 0.25,
        tau: float = 0.003,
        zero_prior: tuple[float, float] = (5000.0, 2.0),
        prior: tuple[float, float] = (250.0, 0.1),
    ) -> None:
        super().__init__(model)
        for name, value in (("samples", samples), ("span", span), ("deviation", deviation), ("tau", tau)):
            check_positive(name, value)
        if components < 2:
            raise ArgumentError(f"components={components!r}: at least one besides the zero component")
        if not 0 < zero_proportion < 1:
            raise ArgumentError(f"zero_proportion={zero_proportion!r} is outside (0, 1)")
        self._zero_proportion, self._tau, self._strength = zero_proportion, tau, tau / samples
        self._priors = [zero_prior] + [prior] * (components - 1)
        like = self._masked[0].weight.detach()
        means = torch.linspace(-span, span, components - 1, dtype=like.dtype, device=like.device)
        self.means = nn.Parameter(means)
        self.log_precisions = nn.Parameter(like.new_full((components,), -2 * math.log(deviation)))
        self.logits = nn.Parameter(like.new_zeros(components - 1))
        self.attach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Means at 1e-4, log precisions and mixing logits at 3e-3, for Adam."""
        shape = [self.log_precisions, self.logits]
        return [
            {"params": [self.means], "lr": 1e-4, "weight_decay": 0.0},
            {"params": shape, "lr": 3e-3, "weight_decay": 0.0},
        ]

    def mixture(self) -> Mixture:
        """The present prior of a weight, differentiable."""
        zero = self.means.new_zeros(1)
        others = self.logits.log_softmax(0) + math.log1p(-self._zero_proportion)
        log_proportions = torch.cat([zero + math.log(self._zero_proportion), others])
        return Mixture(log_proportions, torch.cat([zero, self.means]), self.log_precisions)

    def log_prior(self) -> Tensor:
        """Log density, up to a constant, of all weights and of the precisions; a scalar."""
        shapes, rates = self.means.new_tensor(self._priors).unbind(1)
        of_precisions = (shapes - 1) * self.log_precisions - rates * self.log_precisions.exp()
        return self.mixture().total_log_prob(self._weights()) + of_precisions.sum()

    def _penalty(self) -> Tensor:
        return -self._strength * self.log_prior()

    @torch.no_grad()
    def _decision(self) -> Decision:
        mixture = self.mixture().merged()
        if len(mixture.means) == 1:
            raise ArgumentError(
                f"tau={self._tau!r}: all components merged, every weight is 0; use a lower tau"
            )
        zero = int(mixture.means.abs().argmin())
        joint = mixture.joint(self._weights())
        of_zero = joint[:, zero].clone()
        joint[:, zero] = -math.inf
        of_others, component = joint.max(1)
        scores = of_others - of_zero
        return Decision(mixture.means[component], scores, scores > 0)
