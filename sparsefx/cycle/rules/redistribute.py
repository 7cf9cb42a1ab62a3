"""How much of all that was removed each layer regrows: a nonnegative statistic a layer.

A layer's share is its statistic over the sum of all. Statistics are taken on the mask before
pruning, those :class:`OfSurvivors` after it (``"survivors"``: Mostafa & Wang 2019, algorithm 1). A layer
without active weights has statistic 0, by momentum that of all its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.select import magnitudes
from sparsefx.errors import CycleError

Redistribute = Callable[[Sequence[LayerState]], "Sequence[float] | None"]


@dataclass(frozen=True)
class OfSurvivors:
    """A statistic taken on the mask after pruning instead of before."""

    statistic: Redistribute

    @property
    def __name__(self) -> str:
        return f"surviving {getattr(self.statistic, '__name__', repr(self.statistic))}"

    def __call__(self, layers: Sequence[LayerState]) -> Sequence[float] | None:
        """Ask for the statistic."""
        return self.statistic(layers)


def momentum(layers: Sequence[LayerState]) -> list[float]:
    """Mean magnitude of the momentum over active weights (Dettmers & Zettlemoyer 2019, section 3.2).

    In a layer without active weights it is the mean over all positions: it would never get any otherwise.

    Raises:
        CycleError: a layer has no momentum.
    """
    return [
        _mean_magnitude(layer if layer.active else layer.with_mask(layer.mask | True), _momentum_of(layer))
        for layer in layers
    ]


def magnitude(layers: Sequence[LayerState]) -> list[float]:
    """Mean magnitude of the active weights."""
    return [_mean_magnitude(layer, layer.weight) for layer in layers]


def nonzeros(layers: Sequence[LayerState]) -> list[float]:
    """Number of active weights: large layers keep growing."""
    return [float(layer.active) for layer in layers]


def none(layers: Sequence[LayerState]) -> None:
    """No redistribution: every layer regrows as many weights as it lost (Evci et al. 2020)."""


def _momentum_of(layer: LayerState) -> Tensor:
    if layer.momentum is None:
        raise CycleError(
            f"redistribute='momentum' found no momentum for {layer.name!r}; call cycle() after at least "
            "one step(), or choose another redistribute"
        )
    return layer.momentum


def _mean_magnitude(layer: LayerState, values: Tensor) -> float:
    return layer.mean(magnitudes(values), layer.mask)


REDISTRIBUTE: dict[str, Redistribute | OfSurvivors] = {
    "momentum": momentum,
    "magnitude": magnitude,
    "nonzeros": nonzeros,
    "survivors": OfSurvivors(nonzeros),
    "none": none,
}
