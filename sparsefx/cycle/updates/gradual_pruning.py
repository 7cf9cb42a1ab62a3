"""Keep the largest weights: fewer and fewer where a network becomes sparse, always as many where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sparsefx._common.distributions import Distribution, active_counts
from sparsefx.cycle.positions.for_all_layers import best_of_each, largest_of_all
from sparsefx.cycle.positions.layer_state import LayerState, counts_of
from sparsefx.cycle.positions.select import magnitudes
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.cycle.updates.densities import Densities
from sparsefx.cycle.updates.update import LayerOutcome


@dataclass(frozen=True)
class GradualPruning:
    """Keep the weights of largest magnitude, at the density that the progress asks for.

    Gradual magnitude pruning (Zhu & Gupta 2018), the first half of GraNet (Liu et al. 2021), and,
    with stored values, the forward set of Top-KAST (Jayakumar et al. 2020).

    Where inactive weights keep their values, these compete too; otherwise only active ones stay, and a
    layer never grows.

    Attributes:
        start: density before the first update.
        final: density after the last.
        densities: what it is between.
        scope: ``"layer"`` gives each layer its share by ``distribution``; ``"global"`` keeps the largest of
            all layers' weights, at least one a layer.
        distribution: how the density is divided among layers.
        until: the progress at which the final density is reached.
    """

    start: float
    final: float
    densities: Densities
    scope: Literal["layer", "global"] = "layer"
    distribution: str | Distribution = "uniform"
    until: float = 1.0

    reads_momentum = False

    def __call__(self, layers: Sequence[LayerState], context: UpdateContext) -> list[LayerOutcome]:
        """One outcome a layer; see :data:`Update`."""
        density = self.densities(self.start, self.final, context.progress / self.until)
        return keep_largest(layers, density, self.scope, self.distribution)


def keep_largest(
    layers: Sequence[LayerState],
    density: float,
    scope: Literal["layer", "global"] = "layer",
    distribution: str | Distribution = "uniform",
) -> list[LayerOutcome]:
    """Keep the largest weights at one density; see :class:`GradualPruning`."""
    scores = [magnitudes(layer.weight if layer.stored is None else layer.stored) for layer in layers]
    candidates = [layer.mask if layer.stored is None else layer.mask | True for layer in layers]
    if scope == "layer":
        counts = active_counts([layer.shape for layer in layers], density, distribution)
        rows = zip(layers, scores, candidates, counts, strict=True)
        masks = [
            layer.select_largest(score, some, min(count, layer.count(some)))
            for layer, score, some, count in rows
        ]
    else:
        count = round(density * sum(layer.numel for layer in layers))
        masks = _largest_of_all(layers, scores, candidates, count)
    return [LayerOutcome.of(layer, mask) for layer, mask in zip(layers, masks, strict=True)]


def _largest_of_all(
    layers: Sequence[LayerState], scores: list[Tensor], candidates: list[Tensor], count: int
) -> list[Tensor]:
    """The largest of all, but at least one of each."""
    ones = best_of_each(layers, scores, candidates, 1)
    others = [some & ~one for some, one in zip(candidates, ones, strict=True)]
    room, taken = sum(counts_of(layers, others)), sum(counts_of(layers, ones))
    chosen = largest_of_all(layers, scores, others, max(0, min(room, count - taken)))
    return [one | more for one, more in zip(ones, chosen, strict=True)]
