"""Which active weights are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsefx.cycle.positions.allocate import allocate
from sparsefx.cycle.positions.for_all_layers import ForAllLayers, best_of_each, largest_of_all
from sparsefx.cycle.positions.layer_state import LayerState, counts_of
from sparsefx.cycle.positions.select import magnitudes
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.errors import CycleError

Prune = Callable[[LayerState, int, "torch.Generator | None"], Tensor]


def magnitude(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Remove the ``count`` active weights of smallest magnitude; of equals, the lowest flat index.

    Only active positions are ranked, so an active weight that happens to be 0 is removed before
    any larger one and an inactive zero is never counted (Dettmers & Zettlemoyer 2019, section 3.2).

    Args:
        layer: the layer, weight and mask of shape ``S``.
        count: how many weights to remove, at most ``layer.active``.
        generator: not used.

    Returns:
        Bool tensor of shape ``S``, True at exactly ``count`` positions, all of them active.
    """
    return layer.select_largest(-magnitudes(layer.weight), layer.mask, count)


def magnitude_by_sign(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Remove the smallest positive and the largest negative weights (SET: Mocanu et al. 2018, algorithm 1).

    Each sign loses the same fraction; a 0 counts as positive. Arguments and result, with their shapes, are
    those of :func:`magnitude`.
    """
    negative = layer.mask & (layer.weight < 0)
    sides = [layer.mask & ~negative, negative]
    sizes = [layer.count(side) for side in sides]
    counts = allocate(count, sizes, sizes)
    scores = -magnitudes(layer.weight)
    chosen = [layer.select_largest(scores, side, part) for side, part in zip(sides, counts, strict=True)]
    return chosen[0] | chosen[1]


@dataclass(frozen=True)
class MagnitudeAndGradient:
    """Remove the weights of smallest ``|w| + factor * |gradient|`` (MEST: Yuan et al. 2021, section 3.1).

    Attributes:
        factor: how much a gradient counts.
    """

    factor: float = 0.01

    def __call__(self, layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Arguments and result as of :func:`magnitude`.

        Raises:
            CycleError: the layer has no gradient.
        """
        if layer.gradient is None:
            raise CycleError(
                f"{self} found no gradient for {layer.name!r}; call cycle() after step() and "
                "before zero_grad()"
            )
        scores = magnitudes(layer.weight) + self.factor * magnitudes(layer.gradient)
        return layer.select_largest(-scores, layer.mask, count)


def magnitude_times_momentum(
    layer: LayerState, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Remove the weights of smallest ``|w * momentum|``; of equals, the lowest flat index.

    To first order, that is how much the loss changes without a weight (Molchanov et al. 2019, section 3.1),
    with the smoothed gradient in the gradient's place. Arguments and result as of :func:`magnitude`.

    Raises:
        CycleError: the layer has no momentum.
    """
    if layer.momentum is None:
        raise CycleError(
            f"prune='magnitude_times_momentum' found no momentum for {layer.name!r}; call cycle() after at "
            "least one step(), or choose another prune"
        )
    products = magnitudes(layer.weight) * magnitudes(layer.momentum)
    return layer.select_largest(-magnitudes(products), layer.mask, count)  # infinity times 0 is no number


def global_magnitude(
    layers: Sequence[LayerState], counts: Sequence[int], context: UpdateContext | None = None
) -> list[Tensor]:
    """Remove the smallest of all layers' weights, as many in all as ``counts`` adds up to; one a layer stays.

    Args:
        layers: the layers, weights and masks of shapes ``S``.
        counts: how many each would lose layer by layer.
        context: not used.

    Returns:
        A bool tensor of shape ``S`` for each layer.
    """
    sizes = [magnitudes(layer.weight) for layer in layers]
    candidates = [layer.mask & ~one for layer, one in zip(layers, _largest_ones(layers, sizes), strict=True)]
    left = sum(counts_of(layers, candidates))
    return largest_of_all(layers, [-size for size in sizes], candidates, min(sum(counts), left))


def _largest_ones(layers: Sequence[LayerState], sizes: Sequence[Tensor]) -> list[Tensor]:
    """The largest active weight of each layer, which always stays."""
    return best_of_each(layers, sizes, [layer.mask for layer in layers], 1)


@dataclass(frozen=True)
class AdaptiveThreshold:
    """Remove what is below one threshold for all layers, which adapts (Mostafa & Wang 2019, algorithm 1).

    The threshold is halved for the next update where more than 1.1 times ``wanted`` weights were removed,
    and doubled where fewer than 0.9 times. One weight a layer stays.

    Attributes:
        wanted: how many weights an update should remove; a fraction below 1 is one of all active weights.
        start: the first threshold.
    """

    wanted: float
    start: float = 1e-3

    def __call__(
        self, layers: Sequence[LayerState], counts: Sequence[int], context: UpdateContext
    ) -> list[Tensor]:
        """Arguments and result as of :func:`global_magnitude`; ``context.notes`` keeps the threshold."""
        threshold = float(context.notes.setdefault("threshold", self.start))
        sizes = [magnitudes(layer.weight) for layer in layers]
        chosen = [
            layer.mask & (size < threshold) & ~one
            for layer, size, one in zip(layers, sizes, _largest_ones(layers, sizes), strict=True)
        ]
        removed = sum(counts_of(layers, chosen))
        wanted = self.wanted if self.wanted >= 1 else self.wanted * sum(layer.active for layer in layers)
        if removed > 1.1 * wanted:
            context.notes["threshold"] = threshold / 2
        elif removed < 0.9 * wanted:
            context.notes["threshold"] = threshold * 2
        return chosen


def sign_flip(
    layers: Sequence[LayerState], counts: Sequence[int], context: UpdateContext | None = None
) -> list[Tensor]:
    """Remove the weights that crossed 0, away from the sign of their position (DEEP-R: Bellec et al. 2018).

    Arguments and result, with their shapes, are those of :func:`global_magnitude`; ``counts`` plays no part.

    Raises:
        CycleError: a layer has no signs.
    """
    return [layer.mask & (layer.weight * sign_of(layer) < 0) for layer in layers]


def sign_of(layer: LayerState) -> Tensor:
    """The signs that a layer's positions are bound to, int8 of the weight's shape.

    Raises:
        CycleError: the method binds no signs.
    """
    if layer.sign is None:
        raise CycleError(f"layer {layer.name!r} has no signs; use a method with signs=True")
    return layer.sign


PRUNE: dict[str, Any] = {
    "magnitude": magnitude,
    "magnitude_by_sign": magnitude_by_sign,
    "magnitude_and_gradient": MagnitudeAndGradient(),
    "magnitude_times_momentum": magnitude_times_momentum,
    "global_magnitude": ForAllLayers(global_magnitude),
    "sign_flip": ForAllLayers(sign_flip),
}
