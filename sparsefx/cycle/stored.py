"""Masks decided from values that inactive weights keep and go on changing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsefx.cycle.layer_state import LayerState
from sparsefx.cycle.moment import Moment
from sparsefx.cycle.prune import sign_of
from sparsefx.cycle.select import magnitudes
from sparsefx.cycle.thin import keep_largest
from sparsefx.cycle.update import LayerOutcome
from sparsefx.distributions import Distribution
from sparsefx.errors import CycleError


@dataclass(frozen=True)
class Hysteresis:
    """Remove below one threshold, bring back above a higher one (Guo, Yao & Chen 2016, equation 3).

    Both are factors of a level. It follows the weights: at every update it is the value that the wanted
    fraction of a layer's weights exceeds. With ``deviations`` it is the published one, ``mean + deviations *
    std`` of the magnitudes at the first update, which stays; how many weights that leaves is an outcome.

    Attributes:
        density: fraction of the weights that exceed the level, in [0, 1].
        distribution: how that is divided among layers.
        deviations: the published level instead, one number for all layers or one for each in order.
        below: the lower threshold's factor.
        above: the upper threshold's factor.
    """

    density: float
    distribution: str | Distribution = "uniform"
    deviations: float | tuple[float, ...] | None = None
    below: float = 0.9
    above: float = 1.1

    reads_momentum = False

    def __call__(self, layers: Sequence[LayerState], moment: Moment) -> list[LayerOutcome]:
        """One outcome a layer; see :data:`Update`. ``moment.notes`` keeps levels that stay."""
        for layer in layers:
            layer.must_be_whole("a threshold between two levels")
        levels = self._following(layers) if self.deviations is None else self._staying(layers, moment)
        return [self._decide(layer, level) for layer, level in zip(layers, levels, strict=True)]

    def _following(self, layers: Sequence[LayerState]) -> list[float]:
        sizes = [magnitudes(stored_of(layer)) for layer in layers]
        kept = keep_largest(layers, self.density, distribution=self.distribution)
        return [
            float(size[outcome.mask].min()) if outcome.record.active else math.inf
            for size, outcome in zip(sizes, kept, strict=True)
        ]

    def _staying(self, layers: Sequence[LayerState], moment: Moment) -> list[float]:
        levels: dict[str, float] = dict(moment.notes.get("levels", {}))
        for index, layer in enumerate(layers):
            if layer.name not in levels:
                levels[layer.name] = self._published(layer, self._deviations(index))
        moment.notes["levels"] = levels
        return [levels[layer.name] for layer in layers]

    def _published(self, layer: LayerState, deviations: float) -> float:
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


def positive(layers: Sequence[LayerState], moment: Moment) -> list[LayerOutcome]:
    """A weight is active while it has the sign of its position (soft DEEP-R: Bellec et al. 2018, alg. 2)."""
    return [LayerOutcome.of(layer, stored_of(layer) * sign_of(layer) > 0) for layer in layers]


def stored_of(layer: LayerState) -> Tensor:
    """The values that a layer's weights keep while inactive."""
    if layer.stored is None:
        raise CycleError(f"layer {layer.name!r} keeps no inactive values; use a method with a memory")
    return layer.stored
