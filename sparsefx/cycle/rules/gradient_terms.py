"""What some methods add to the gradient before each step: regularisation, and noise to walk by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.cycle.rules.prune import sign_of
from sparsefx.errors import CycleError


@dataclass(frozen=True)
class RandomWalk:
    """An L1 penalty and noise on active weights (DEEP-R: Bellec et al. 2018, algorithm 1).

    With plain SGD of learning rate ``lr`` a weight moves by ``lr * (l1 + noise * n)`` besides, ``n`` standard
    normal, ``l1`` towards 0.

    Attributes:
        l1: strength of the penalty.
        noise: standard deviation of the noise.
        dormant: inactive weights walk too, by the noise alone (algorithm 2); without, they are at rest.
    """

    l1: float = 1e-5
    noise: float = 1e-5
    dormant: bool = False

    def __call__(self, layer: LayerState, context: UpdateContext) -> Tensor:
        """What is added to the layer's gradient, of its weight's shape.

        Raises:
            CycleError: the layer has no signs, or inactive weights walk and it has no gradient.
        """
        layer.must_be_full("a random walk")
        if not self.dormant:
            term = torch.zeros_like(layer.weight)
            pull = sign_of(layer)[layer.mask] * self.l1  # as many random numbers as there are active weights
            term[layer.mask] = (pull + self._noise(pull.shape, layer, context)).to(term.dtype)
            return term
        if layer.gradient is None:
            raise CycleError(f"no gradient for {layer.name!r}; call step() after backward()")
        term = torch.where(layer.mask, sign_of(layer) * self.l1, -layer.gradient)
        return term + self._noise(layer.weight.shape, layer, context)

    def _noise(self, shape: torch.Size, layer: LayerState, context: UpdateContext) -> Tensor:
        return torch.randn(shape, generator=context.generator).to(layer.weight.device) * self.noise


@dataclass(frozen=True)
class ExplorationPenalty:
    """An L1 penalty, stronger where a weight learns but is not active (Jayakumar et al. 2020, section 2.2).

    Attributes:
        strength: the penalty's factor; divided by ``density`` outside the active set.
        density: fraction of the weights that is active.
    """

    strength: float
    density: float

    def __call__(self, layer: LayerState, context: UpdateContext) -> Tensor:
        """What is added to the layer's gradient, of its weight's shape.

        Raises:
            CycleError: the layer has no backward set.
        """
        if layer.stored is None or layer.backward is None:
            raise CycleError(f"layer {layer.name!r} has no backward set; use memory='backward'")
        factor = torch.where(layer.mask, 1.0, layer.backward / self.density)
        return self.strength * factor * layer.stored.sign()
