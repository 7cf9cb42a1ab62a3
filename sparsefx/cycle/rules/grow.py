"""Which inactive positions of a layer become active.

Every function here takes the layer under its mask after pruning, so what was just pruned is a
candidate again, and returns exactly ``count`` positions, none of which is active.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsefx.cycle.positions.allocate import allocate
from sparsefx.cycle.positions.draw import draw
from sparsefx.cycle.positions.for_all_layers import ForAllLayers, largest_of_all
from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.select import magnitudes
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.errors import CycleError

Grow = Callable[[LayerState, int, "torch.Generator | None"], Tensor]


def momentum(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Grow where the momentum is largest in magnitude (Dettmers & Zettlemoyer 2019, section 3.2).

    Args:
        layer: the layer, weight, mask and momentum of shape ``S``.
        count: how many positions to activate, at most ``layer.free``.
        generator: not used.

    Returns:
        Bool tensor of shape ``S``; of equal momenta the lowest flat index is chosen.

    Raises:
        CycleError: the layer has no momentum.
    """
    return layer.select_largest(magnitudes(_momentum_of(layer)), ~layer.mask, count)


def gradient(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Grow where the present gradient is largest in magnitude (RigL: Evci et al. 2020, section 3).

    Args:
        layer: the layer, weight, mask and gradient of shape ``S``.
        count: how many positions to activate, at most ``layer.free``.
        generator: not used.

    Returns:
        Bool tensor of shape ``S``; of equal gradients the lowest flat index is chosen.

    Raises:
        CycleError: the layer has no gradient.
    """
    if layer.gradient is None:
        raise CycleError(
            f"grow='gradient' found no gradient for {layer.name!r}; call cycle() after step() and "
            "before zero_grad()"
        )
    return layer.select_largest(magnitudes(layer.gradient), ~layer.mask, count)


def random(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Grow at positions drawn uniformly without replacement (SET: Mocanu et al. 2018).

    Args:
        layer: the layer, mask of shape ``S``.
        count: how many positions to activate, at most ``layer.free``.
        generator: a CPU generator, so that the draw is the same whatever device the layer is on.

    Returns:
        Bool tensor of shape ``S``.
    """
    return draw(layer, ~layer.mask, count, generator)


def random_fresh(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Grow at random, but not where the same update has just pruned (Mostafa & Wang 2019, algorithm 1).

    Where there is not enough room without, it is used too. Arguments and result, with their shapes, are those
    of :func:`random`.
    """
    removed = torch.zeros_like(layer.mask) if layer.removed is None else layer.removed
    return _draw_first(layer, ~layer.mask & ~removed, count, generator)


def random_unexplored(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Grow at random where the weight was never active, while there is such a place (Liu et al. 2021).

    Arguments and result, with their shapes, are those of :func:`random`.

    Raises:
        CycleError: nobody keeps count of what was active.
    """
    if layer.explored is None:
        raise CycleError(f"nobody keeps count of what was active in {layer.name!r}; use explores=True")
    return _draw_first(layer, ~layer.mask & ~layer.explored, count, generator)


def _draw_first(
    layer: LayerState, preferred: Tensor, count: int, generator: torch.Generator | None
) -> Tensor:
    """``count`` of the preferred positions; where there are too few, all of them and other inactive ones."""
    first = draw(layer, preferred, min(count, layer.count(preferred)), generator)
    missing = count - layer.count(first)
    return first | draw(layer, ~layer.mask & ~first, missing, generator) if missing else first


def momentum_neuron(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Share the growth among neurons by their mean momentum, then grow each one's largest momenta.

    A neuron is an index of the weight's first dimension: an output of a linear layer or convolution
    (an input of a transposed convolution). Quotas are those of :func:`allocate`, capped by the
    neuron's inactive positions. From the code published with Dettmers & Zettlemoyer 2019.

    Args:
        layer: the layer, weight, mask and momentum of shape ``(neurons, ...)``.
        count: how many positions to activate, at most ``layer.free``.
        generator: not used.

    Returns:
        Bool tensor of the mask's shape.

    Raises:
        CycleError: the layer has no momentum.
    """
    layer.must_be_full("grow='momentum_neuron'")
    scores = magnitudes(_momentum_of(layer)).flatten(1)
    inactive = ~layer.mask.flatten(1)
    quotas = _neuron_quotas(scores, inactive, count).unsqueeze(1)
    order = scores.masked_fill(~inactive, -1).sort(dim=1, descending=True, stable=True).indices
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(inactive).scatter_(1, order, rank < quotas).view(layer.mask.shape)


def _neuron_quotas(scores: Tensor, inactive: Tensor, count: int) -> Tensor:
    """How many weights each neuron grows, int64 of shape (neurons,)."""
    means = scores.mean(dim=1, dtype=torch.float64)
    free = inactive.sum(dim=1)
    shares = means if float(means.sum()) > 0 else free
    return torch.tensor(allocate(count, shares.tolist(), free.tolist()), device=scores.device)


def _momentum_of(layer: LayerState) -> Tensor:
    if layer.momentum is None:
        raise CycleError(
            f"growing by momentum found no momentum for {layer.name!r}; call cycle() after at least one "
            "step(), or choose another grow"
        )
    return layer.momentum


def global_momentum(
    layers: Sequence[LayerState], counts: Sequence[int], context: UpdateContext | None = None
) -> list[Tensor]:
    """Grow where the momentum is largest of all layers, whatever each was due.

    From the code published with Dettmers & Zettlemoyer 2019, with the exact count instead of a threshold.

    Args:
        layers: the layers, masks and momenta of shapes ``S``.
        counts: how many each would gain layer by layer.
        context: not used.

    Returns:
        A bool tensor of shape ``S`` for each layer.

    Raises:
        CycleError: a layer has no momentum.
    """
    scores = [magnitudes(_momentum_of(layer)) for layer in layers]
    return largest_of_all(layers, scores, [~layer.mask for layer in layers], sum(counts))


GROW: dict[str, Any] = {
    "momentum": momentum,
    "gradient": gradient,
    "random": random,
    "random_fresh": random_fresh,
    "random_unexplored": random_unexplored,
    "momentum_neuron": momentum_neuron,
    "global_momentum": ForAllLayers(global_momentum),
}
