"""Masks decided from values that inactive weights keep and go on changing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsefx.cycle.layer_state import LayerState
from sparsefx.cycle.moment import Moment
from sparsefx.cycle.prune import sign_of
from sparsefx.cycle.select import magnitudes
from sparsefx.cycle.thin import keep_largest
from sparsefx.cycle.update import LayerOutcome
from sparsefx.errors import CycleError


@dataclass(frozen=True)
class Hysteresis:
    """Remove below one threshold, bring back above a higher one (Guo, Yao & Chen 2016, equation 3).

    The thresholds of a layer are set at the first update and stay: 0.9 and 1.1 times the value that leaves
    ``density`` of it, or, with ``deviations``, times ``mean + deviations * std`` of the magnitudes.

    Attributes:
        density: fraction of each layer that exceeds the value between the two thresholds, in [0, 1].
        deviations: the published form instead, for all layers or for each in order.
        below: the lower threshold's factor.
        above: the upper threshold's factor.
    """

    density: float
    deviations: float | tuple[float, ...] | None = None
    below: float = 0.9
    above: float = 1.1

    reads_momentum = False

    def __call__(self, layers: Sequence[LayerState], moment: Moment) -> list[LayerOutcome]:
        """One outcome a layer; see :data:`Update`. ``moment.notes`` keeps the thresholds."""
        levels = dict(moment.notes.get("levels", {}))
        for index, layer in enumerate(layers):
            if layer.name not in levels:
                levels[layer.name] = self._level(layer, index)
        moment.notes["levels"] = levels
        return [self._decide(layer, levels[layer.name]) for layer in layers]

    def _level(self, layer: LayerState, index: int) -> float:
        layer.must_be_whole("a threshold between two levels")
        sizes = magnitudes(stored_of(layer))
        if self.deviations is None:
            kept = keep_largest([layer], self.density)[0].mask
            return float(sizes[kept].min()) if bool(kept.any()) else float(sizes.max())
        nonzero = sizes[sizes != 0]
        return max(0.0, float(nonzero.mean() + self._deviations(index) * nonzero.std()))

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
