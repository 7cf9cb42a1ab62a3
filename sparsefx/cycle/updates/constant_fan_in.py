"""Constant fan-in with neuron ablation: every neuron of a layer has as many inputs (SRigL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx._common.distributions import Distribution, active_counts
from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.select import magnitudes, select_largest
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.cycle.updates.update import LayerOutcome
from sparsefx.errors import ArgumentError, CycleError


@dataclass(frozen=True)
class ConstantFanIn:
    """Prune by magnitude and grow by gradient, with equally many inputs to every neuron that is left.

    Structured RigL (Lasby et al. 2024, section 3). A neuron is an index of the weight's first dimension.
    What of a layer's budget does not divide by its neurons stays unused.

    Attributes:
        salient: a neuron with fewer salient weights than this fraction of the layer's fan-in is ablated,
            all its weights removed (from 1 on: than this number); a layer always keeps as many neurons as its
            budget needs, and the last layer in the model's order all of them. 0 ablates only those without
            any.
        density: fraction of all weights that the budgets add up to; None for what is active at the first
            update.
        distribution: how it is divided among layers.
    """

    salient: float = 0.3
    density: float | None = None
    distribution: str | Distribution = "uniform"

    reads_momentum = False

    def __call__(self, layers: Sequence[LayerState], context: UpdateContext) -> list[LayerOutcome]:
        """One outcome a layer; see :data:`Update`. ``context.notes`` keeps the budgets.

        Raises:
            CycleError: a layer has no gradient, or is sharded over processes.
        """
        for layer in layers:
            layer.must_be_full("constant fan-in")
        budgets = {**self._budgets(layers), **context.notes.get("budgets", {})}
        context.notes["budgets"] = budgets
        last = len(layers) - 1
        outcomes = []
        for index, layer in enumerate(layers):
            mask = layer.mask
            if layer.active and context.rate > 0:
                salient = self.salient if index < last else None
                mask = _update(layer, int(budgets[layer.name]), context.rate, salient)
            outcomes.append(LayerOutcome.of(layer, mask))
        return outcomes

    def _budgets(self, layers: Sequence[LayerState]) -> dict[str, int]:
        counts = [layer.active for layer in layers]
        if self.density is not None:
            counts = active_counts([layer.mask.shape for layer in layers], self.density, self.distribution)
        return {layer.name: count for layer, count in zip(layers, counts, strict=True)}


def constant_fan_in_mask(shape: torch.Size, active: int, generator: torch.Generator | None = None) -> Tensor:
    """A random mask with the same number of inputs to every neuron, at most ``active`` in all.

    Args:
        shape: the weight's shape, ``(neurons, ...)``.
        active: how many positions may be active.
        generator: CPU generator; torch's global one if None.

    Raises:
        ArgumentError: that is less than one input a neuron.
    """
    neurons, inputs = shape[0], shape.numel() // max(1, shape[0])
    fan_in = active // max(1, neurons)
    if fan_in == 0:
        raise ArgumentError(
            f"density leaves {active} active weights for {neurons} neurons of shape {tuple(shape)}; "
            "a constant fan-in needs at least one each"
        )
    ranks = torch.rand(neurons, inputs, generator=generator).argsort(1).argsort(1)
    return (ranks < fan_in).view(shape)


def _update(layer: LayerState, budget: int, rate: float, salient: float | None) -> Tensor:
    """The new mask of one layer; ``salient`` None ablates nothing."""
    sizes, slopes, mask = _rows(layer)
    kept = min(layer.active - int(rate * layer.active), int((sizes[mask] > 0).sum()))
    grown = layer.active - kept
    strong = select_largest(sizes, mask, kept)
    steep = select_largest(slopes, torch.ones_like(mask), grown)
    neurons = _neurons_left(mask, strong | steep, budget, salient)
    fan_in = min(budget // int(neurons.sum()), mask.shape[1])
    alive = neurons[:, None] & torch.ones_like(mask)
    candidates = mask & alive
    largest = select_largest(sizes, candidates, min(kept, int(candidates.sum())))
    survivors = _top_of_rows(sizes, largest, fan_in)
    # survivors come first, then the steepest of the others
    return _top_of_rows(slopes.masked_fill(survivors, torch.inf), alive, fan_in).view(layer.mask.shape)


def _rows(layer: LayerState) -> tuple[Tensor, Tensor, Tensor]:
    """Magnitudes of weights and gradients, and the mask, each (neurons, inputs)."""
    if layer.gradient is None:
        raise CycleError(
            f"constant fan-in found no gradient for {layer.name!r}; call cycle() after step() and "
            "before zero_grad()"
        )
    parts = magnitudes(layer.weight), magnitudes(layer.gradient), layer.mask
    sizes, slopes, mask = (part.reshape(part.shape[0], -1) for part in parts)
    return sizes, slopes, mask


def _neurons_left(mask: Tensor, salient: Tensor, budget: int, fraction: float | None) -> Tensor:
    """The neurons that are not ablated, bool of shape (neurons,)."""
    active = mask.any(1)
    if fraction is None:
        return active
    counts = salient.sum(1)
    fan_in = budget // int(active.sum())
    least = fraction if fraction >= 1 else fraction * fan_in
    left = active & (counts >= max(1, int(least)))
    needed = -(-budget // mask.shape[1])  # fewer neurons could not hold the budget
    missing = needed - int(left.sum())
    if missing > 0:
        others = active & ~left
        left = left | select_largest(counts.double(), others, min(missing, int(others.sum())))
    return left


def _top_of_rows(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The ``count`` candidates of largest score in each row, or all where there are fewer."""
    ranked = scores.masked_fill(~candidates, -1)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(candidates).scatter_(1, order, rank < count) & candidates
