"""Sparse variational dropout: Gaussian noise of a learned variance on each weight."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from sparsefx.errors import ArgumentError
from sparsefx.regularisers.base import Decision, Regulariser, check_positive
from sparsefx.regularisers.layer_map import apply_weight, layers_of

_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
_LARGEST = 8.0  # log alpha is clipped to [-8, 8]
_TINY = 1e-8


def kl_divergence(log_alpha: Tensor) -> Tensor:
    """From the posterior to the log-uniform prior, elementwise (Molchanov et al. 2017, equation 14).

    Example:
        >>> round(float(kl_divergence(torch.tensor(0.0))), 5)
        0.43124
    """
    return _K1 - _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)


class VariationalDropout(Regulariser):
    """Learn a noise variance for each weight and drop the weights it drowns (Molchanov et al. 2017).

    Weights are N(theta, sigma^2) with theta the model's weight. In training the output of a layer is
    drawn from its Gaussian (local reparametrisation); in evaluation the layer computes with theta, 0
    where ``log alpha = log sigma^2 - log theta^2`` is above the threshold. The penalty is the divergence
    of the weights' distribution from a log-uniform prior, over ``samples``.

    The paper trains everything by Adam at 1e-3, in 200 epochs of batches of 100, without weight decay;
    the authors' code lets the learning rate fall linearly to 0 over the second half.

    Args:
        model: masks all True; trained or not.
        samples: how many examples the training set has.
        threshold: weights with a larger log alpha are pruned; 3 is a dropout rate of 0.95.
        log_variance: log sigma^2 at the start.
        warm_up: the penalty's weight is 0 up to the first fraction of training and rises linearly to 1
            at the second (epochs 5 and 20 of 200 in the authors' code for LeNet).
        train_clip: train with the weights above the threshold already at 0. Their noise stays, their
            penalty has no gradient.

    Raises:
        ArgumentError: an argument is out of range, or the model cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int,
        threshold: float = 3.0,
        log_variance: float = -10.0,
        warm_up: tuple[float, float] = (0.025, 0.1),
        train_clip: bool = False,
    ) -> None:
        super().__init__(model)
        check_positive("samples", samples)
        if not 0 <= warm_up[0] <= warm_up[1] <= 1:
            raise ArgumentError(f"warm_up={warm_up!r} is not two rising fractions of training")
        self._samples, self._threshold, self._warm_up = samples, threshold, warm_up
        self._train_clip = train_clip
        self._layers = [layers_of(masked) for masked in self._masked]
        weights = (masked.weight.detach() for masked in self._masked)
        self.log_variances = nn.ParameterList(torch.full_like(w, log_variance) for w in weights)
        self.attach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The log variances at 1e-3, for Adam."""
        return [{"params": list(self.log_variances), "lr": 1e-3, "weight_decay": 0.0}]

    def log_alphas(self) -> list[Tensor]:
        """Log alpha of every layer's weights, of their shapes, clipped to [-8, 8], differentiable."""
        return [self._log_alpha(i).clamp(-_LARGEST, _LARGEST) for i in range(len(self._masked))]

    @property
    def penalty_weight(self) -> float:
        """What the divergence counts at present, in [0, 1]."""
        start, end = self._warm_up
        if self.progress >= end:
            return 1.0
        return max(0.0, (self.progress - start) / (end - start))

    def _log_alpha(self, index: int) -> Tensor:
        log_square = torch.log(self._masked[index].weight.square() + _TINY)
        return cast("Tensor", self.log_variances[index] - log_square)

    def _kept(self, index: int) -> Tensor:
        return self._log_alpha(index).detach() <= self._threshold

    def _penalty(self) -> Tensor:
        divergence = torch.stack([self._divergence(i, a) for i, a in enumerate(self.log_alphas())]).sum()
        return self.penalty_weight / self._samples * divergence

    def _divergence(self, index: int, log_alpha: Tensor) -> Tensor:
        if self._train_clip:
            log_alpha = torch.where(self._kept(index), log_alpha, log_alpha.detach())
        return kl_divergence(log_alpha).sum()

    def _hooks(self) -> Iterable[RemovableHandle]:
        for index, layers in enumerate(self._layers):
            for layer in layers:
                yield layer.register_forward_hook(partial(self._sample, index))

    def _sample(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """A draw of the layer's output in training, its output with the pruned weight in evaluation."""
        weight = self._masked[index].weight
        if self._train_clip or not layer.training:
            output = apply_weight(layer, args, weight * self._kept(index), layer.bias)  # type: ignore[arg-type]
        if not layer.training:
            return output
        squared = (args[0].square(), *args[1:])
        variance = apply_weight(layer, squared, self.log_variances[index].exp(), None)
        return output + torch.sqrt(variance + _TINY) * torch.randn_like(output)

    @torch.no_grad()
    def _decision(self) -> Decision:
        indices = range(len(self._masked))
        scores = -self._flat(self._log_alpha(i) for i in indices)
        return Decision(self._weights(), scores, self._flat(self._kept(i) for i in indices))
