"""Prune, redistribute, grow: weights move about and their total number is conserved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from sparsefx.cycle.positions.allocate import allocate
from sparsefx.cycle.positions.for_all_layers import ForAllLayers
from sparsefx.cycle.positions.layer_state import LayerState, counts_of
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.cycle.rules.grow import GROW, Grow
from sparsefx.cycle.rules.prune import PRUNE, Prune
from sparsefx.cycle.rules.redistribute import REDISTRIBUTE, OfSurvivors, Redistribute
from sparsefx.cycle.updates.update import LayerOutcome
from sparsefx.errors import CycleError

# A rate times a count is a whole number too often to let its rounding error decide.
_SLACK = 1e-9

_WITHOUT_MOMENTUM = (
    *(PRUNE[name] for name in PRUNE if name != "magnitude_times_momentum"),
    *(REDISTRIBUTE[name] for name in ("magnitude", "nonzeros", "survivors", "none")),
    *(GROW[name] for name in ("random", "random_fresh", "random_unexplored", "gradient")),
)


@dataclass(frozen=True)
class PruneAndRegrow:
    """One cycle of Dettmers & Zettlemoyer 2019, section 3.2, with exact counts.

    Nothing is written: the layers are left as they are. The number of active weights, summed over
    layers, is the same before and after, and each layer's lies between 0 and its size.

    Attributes:
        prune: chooses what a layer loses, or all layers together.
        redistribute: gives each layer's statistic, or None for every layer to regrow what it lost.
        grow: chooses what a layer gains, or all layers together.
        rounding: whether a layer loses ``"ceil"`` or ``"floor"`` of its rate times its active weights.
        keeps_regrown: whether a weight that is removed and regrown at once keeps its value.
        dense_threshold: a layer with a smaller fraction of inactive weights than this, and more than
            an equal share of the growth, is pruned by no more than that fraction.
    """

    prune: Prune | ForAllLayers
    redistribute: Redistribute | OfSurvivors
    grow: Grow | ForAllLayers
    rounding: Literal["ceil", "floor"] = "ceil"
    keeps_regrown: bool = False
    dense_threshold: float = 0.2

    def __call__(self, layers: Sequence[LayerState], context: UpdateContext) -> list[LayerOutcome]:
        """Decide one cycle.

        Args:
            layers: every layer that takes part.
            context: its rate and generator count.

        Returns:
            One outcome a layer, in the same order.

        Raises:
            CycleError: a statistic, momentum or gradient is missing, or ``prune``, ``redistribute`` or
                ``grow`` returned something else than it should.
        """
        late = isinstance(self.redistribute, OfSurvivors)
        idle = context.rate == 0 and not isinstance(self.prune, ForAllLayers)
        shares = None if late or idle else self._shares(layers)
        pruned = _choose("prune", self.prune, layers, self._losses(layers, context.rate, shares), context)
        losses = counts_of(layers, pruned)
        rest = [layer.without(chosen) for layer, chosen in zip(layers, pruned, strict=True)]
        if late and any(losses):
            shares = self._shares(rest)
        gains = losses if shares is None else allocate(sum(losses), shares, [layer.free for layer in rest])
        grown = _choose("grow", self.grow, rest, gains, context)
        return [
            self._outcome(*parts)
            for parts in zip(layers, rest, grown, shares or _fractions(losses), strict=True)
        ]

    @property
    def reads_momentum(self) -> bool:
        """Whether one of its parts may; a custom one is taken to."""
        return any(part not in _WITHOUT_MOMENTUM for part in (self.prune, self.redistribute, self.grow))

    def _outcome(self, layer: LayerState, rest: LayerState, grown: Tensor, share: Fraction) -> LayerOutcome:
        new = grown & ~layer.mask if self.keeps_regrown else grown
        outcome = LayerOutcome.of(layer, rest.mask | grown, grown)
        return replace(outcome, grown=new, record=replace(outcome.record, share=float(share)))

    def _shares(self, layers: Sequence[LayerState]) -> list[Fraction] | None:
        """Each layer's share of the growth, summing to 1; None where every layer regrows what it lost.

        That is also the way out when the statistics say nothing: all are 0, or their sum is not finite.
        """
        statistics = self.redistribute(layers)
        if statistics is None:
            return None
        values = [float(value) for value in statistics]
        if len(values) != len(layers) or any(value < 0 for value in values):
            raise CycleError(
                f"redistribute {_name(self.redistribute)!r} returned {values} for {len(layers)} layers; "
                "it must return one nonnegative number a layer, or None"
            )
        if not (math.isfinite(sum(values)) and any(values)):
            return None
        return _fractions(values)

    def _losses(
        self, layers: Sequence[LayerState], rate: float, shares: Sequence[Fraction] | None
    ) -> list[int]:
        """How many weights each layer loses."""
        if not any(layer.free for layer in layers):
            return [0] * len(layers)  # each could only regrow the same
        equal = Fraction(1, max(1, len(layers)))
        losses = []
        for index, layer in enumerate(layers):
            sparsity = layer.free / max(1, layer.numel)
            growing = shares is not None and shares[index] > equal
            capped = min(rate, sparsity) if growing and sparsity < self.dense_threshold else rate
            if shares is None and not layer.free:
                capped = 0  # it would only regrow the same
            wanted = capped * layer.active
            losses.append(math.ceil(wanted - _SLACK) if self.rounding == "ceil" else int(wanted + _SLACK))
        return losses


def _fractions(values: Sequence[float]) -> list[Fraction]:
    """Values over their sum; all 0 if they are."""
    exact = [Fraction(value) for value in values]
    total = sum(exact, Fraction(0)) or Fraction(1)
    return [value / total for value in exact]


def _choose(
    role: str,
    choose: Prune | Grow | ForAllLayers,
    layers: Sequence[LayerState],
    counts: Sequence[int],
    context: UpdateContext,
) -> list[Tensor]:
    """Ask a prune or grow function for positions, and hold it to what it may choose."""
    candidates = [layer.mask if role == "prune" else ~layer.mask for layer in layers]
    if isinstance(choose, ForAllLayers):
        chosen = choose(layers, counts, context)
        wanted: Sequence[int | None] = [None] * len(layers)
    else:
        chosen = [
            _choose_of_layer(choose, layer, count, context.generator)
            for layer, count in zip(layers, counts, strict=True)
        ]
        wanted = counts
    kind = "active" if role == "prune" else "inactive"
    for layer, positions, allowed, count in zip(layers, chosen, candidates, wanted, strict=True):
        problem = _problem(layer, positions, count, allowed, kind)
        if problem:
            raise CycleError(f"{role} {_name(choose)!r} on layer {layer.name!r} {problem}")
    if role == "grow" and (total := sum(counts_of(layers, chosen))) != sum(counts):
        raise CycleError(f"grow {_name(choose)!r} chose {total} positions in all instead of {sum(counts)}")
    return chosen


def _choose_of_layer(
    choose: Callable[..., Any], layer: LayerState, count: int, generator: torch.Generator | None
) -> Tensor:
    if count == 0:
        return torch.zeros_like(layer.mask)
    chosen: Tensor = choose(layer, count, generator)
    return chosen


def _problem(layer: LayerState, chosen: Any, count: int | None, candidates: Tensor, kind: str) -> str:
    """What is wrong with a choice, empty if nothing."""
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != candidates.shape:
        got = f"{chosen.dtype} {tuple(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
        return f"must return a bool tensor of shape {tuple(candidates.shape)}, not {got}"
    if layer.count(chosen & ~candidates):
        return f"chose positions that are not {kind}"
    if count is not None and (number := layer.count(chosen)) != count:
        return f"chose {number} positions instead of {count}"
    return ""


def _name(function: object) -> str:
    return getattr(function, "__name__", repr(function))
