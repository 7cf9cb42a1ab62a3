"""Masks decided from values that inactive weights keep and go on changing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsefx._common.distributions import Distribution
from sparsefx._common.values import is_number
from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.select import magnitudes
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.cycle.rules.prune import sign_of
from sparsefx.cycle.updates.gradual_pruning import keep_largest
from sparsefx.cycle.updates.update import LayerOutcome
from sparsefx.errors import ArgumentError, CycleError


@dataclass(frozen=True)
class Hysteresis:
    """Remove below one threshold, bring back above a higher one (Guo, Yao & Chen 2016, equation 3).

    Both thresholds of a layer are factors of a level, which follows the weights: at every update it is the
    one that leaves the wanted number of them. With ``deviations`` it is the published one, ``mean +
    deviations * std`` of the magnitudes at the first update, which stays; how many weights that leaves is an
    outcome.

    Attributes:
        density: fraction of the weights that stay, in [0, 1].
        distribution: how that is divided among layers.
        deviations: the published level instead, one number for all layers or one for each in order.
        below: the lower threshold's factor.
        above: the upper threshold's factor.

    Raises:
        ArgumentError: ``deviations`` are not numbers.
    """

    density: float
    distribution: str | Distribution = "uniform"
    deviations: float | tuple[float, ...] | None = None
    below: float = 0.9
    above: float = 1.1

    reads_momentum = False

    def __post_init__(self) -> None:
        numbers = self.deviations if isinstance(self.deviations, tuple) else (self.deviations or 0.0,)
        if not all(map(is_number, numbers)):
            raise ArgumentError(f"deviations={self.deviations!r} is neither a number nor a tuple of numbers")

    def __call__(self, layers: Sequence[LayerState], context: UpdateContext) -> list[LayerOutcome]:
        """One outcome a layer; see :data:`Update`. ``context.notes`` keeps levels that stay."""
        if self.deviations is not None:
            return self._by_levels(layers, context)
        # A weight is above its threshold for a level where it exceeds that level times its own factor.
        favoured = [
            replace(layer, stored=stored_of(layer) / torch.where(layer.mask, self.below, self.above))
            for layer in layers
        ]
        return keep_largest(favoured, self.density, distribution=self.distribution)

    def _by_levels(self, layers: Sequence[LayerState], context: UpdateContext) -> list[LayerOutcome]:
        levels: dict[str, float] = dict(context.notes.get("levels", {}))
        for index, layer in enumerate(layers):
            layer.must_be_full("a threshold between two levels")
            if layer.name not in levels:
                levels[layer.name] = self._level(layer, self._deviations(index))
        context.notes["levels"] = levels
        return [self._decide(layer, levels[layer.name]) for layer in layers]

    def _level(self, layer: LayerState, deviations: float) -> float:
        sizes = magnitudes(stored_of(layer))
        nonzero = sizes[sizes != 0]
        return max(0.0, float(nonzero.mean() + deviations * nonzero.std()))

    def _deviations(self, index: int) -> float:
        if not isinstance(self.deviations, tuple):
            return float(self.deviations or 0.0)
        if index >= len(self.deviations):
            raise CycleError(
                f"deviations={self.deviations!r} has no number for layer {index + 1}; give one a layer"
            )
        return self.deviations[index]

    def _decide(self, layer: LayerState, level: float) -> LayerOutcome:
        sizes = magnitudes(stored_of(layer))
        stays = layer.mask & (sizes >= self.below * level)
        return LayerOutcome.of(layer, stays | (sizes >= self.above * level))


def positive(layers: Sequence[LayerState], context: UpdateContext) -> list[LayerOutcome]:
    """A weight is active while it has the sign of its position (soft DEEP-R: Bellec et al. 2018, alg. 2)."""
    return [LayerOutcome.of(layer, stored_of(layer) * sign_of(layer) > 0) for layer in layers]


def stored_of(layer: LayerState) -> Tensor:
    """The values that a layer's weights keep while inactive, of the weight's shape.

    Raises:
        CycleError: the method keeps none.
    """
    if layer.stored is None:
        raise CycleError(f"layer {layer.name!r} keeps no inactive values; use a method with a memory")
    return layer.stored
