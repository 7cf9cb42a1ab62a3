"""One cycle over all layers: prune, redistribute, grow. The total number of weights is conserved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from sparsefx.cycle.allocate import allocate
from sparsefx.cycle.grow import Grow
from sparsefx.cycle.layer_state import LayerState
from sparsefx.cycle.prune import Prune
from sparsefx.cycle.record import LayerRecord
from sparsefx.cycle.redistribute import Redistribute
from sparsefx.errors import CycleError

# A rate times a count is a whole number too often to let its rounding error decide the ceiling.
_CEILING_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class LayerOutcome:
    """The decision on one layer.

    Attributes:
        mask: the new mask, bool, shape ``S``.
        grown: True where a weight was activated, bool, shape ``S``; these weights start at 0, also
            where the same cycle had just removed them.
        record: the same in numbers.
    """

    mask: Tensor
    grown: Tensor
    record: LayerRecord


def run_cycle(
    layers: Sequence[LayerState],
    *,
    rate: float,
    prune: Prune,
    redistribute: Redistribute,
    grow: Grow,
    generator: torch.Generator | None = None,
    dense_threshold: float = 0.2,
) -> list[LayerOutcome]:
    """Decide one cycle of Dettmers & Zettlemoyer 2019, section 3.2, with exact counts.

    Nothing is written: the layers are left as they are. The number of active weights, summed over
    layers, is the same before and after, and each layer's lies between 0 and its size.

    Args:
        layers: every layer that takes part.
        rate: fraction of a layer's active weights to remove, in [0, 1].
        prune: chooses what a layer loses.
        redistribute: gives each layer's statistic, or None for every layer to regrow what it lost.
        grow: chooses what a layer gains.
        generator: handed to ``prune`` and ``grow``.
        dense_threshold: a layer with a smaller fraction of inactive weights than this, and more than
            an equal share of the growth, is pruned by no more than that fraction.

    Returns:
        One outcome a layer, in the same order.

    Raises:
        CycleError: a statistic, momentum or gradient is missing, or ``prune``, ``redistribute`` or
            ``grow`` returned something else than it should.
    """
    shares = _shares(redistribute, layers) if rate > 0 else None
    losses = _losses(layers, rate, shares, dense_threshold)
    gains = losses
    if shares is not None:
        room = [layer.free + loss for layer, loss in zip(layers, losses, strict=True)]
        gains = allocate(sum(losses), shares, room)
    outcomes = []
    for layer, loss, gain, share in zip(layers, losses, gains, shares or _fractions(losses), strict=True):
        pruned = _choose("prune", prune, layer, loss, layer.mask, generator)
        rest = layer.with_mask(layer.mask & ~pruned)
        grown = _choose("grow", grow, rest, gain, ~rest.mask, generator)
        outcomes.append(LayerOutcome(rest.mask | grown, grown, _record(layer, loss, gain, share)))
    return outcomes


def _shares(redistribute: Redistribute, layers: Sequence[LayerState]) -> list[Fraction] | None:
    """Each layer's share of the growth, summing to 1; None where every layer regrows what it lost.

    That is also the way out when the statistics say nothing: all are 0, or their sum is not finite.
    """
    statistics = redistribute(layers)
    if statistics is None:
        return None
    values = [float(value) for value in statistics]
    if len(values) != len(layers) or any(value < 0 for value in values):
        raise CycleError(
            f"redistribute {_name(redistribute)!r} returned {values} for {len(layers)} layers; "
            "it must return one nonnegative number a layer, or None"
        )
    if not (math.isfinite(sum(values)) and any(values)):
        return None
    return _fractions(values)


def _fractions(values: Sequence[float]) -> list[Fraction]:
    """Values over their sum; all 0 if they are."""
    exact = [Fraction(value) for value in values]
    total = sum(exact, Fraction(0)) or Fraction(1)
    return [value / total for value in exact]


def _losses(
    layers: Sequence[LayerState], rate: float, shares: Sequence[Fraction] | None, dense_threshold: float
) -> list[int]:
    """How many weights each layer loses."""
    equal = Fraction(1, max(1, len(layers)))
    losses = []
    for index, layer in enumerate(layers):
        sparsity = layer.free / max(1, layer.numel)
        growing = shares is not None and shares[index] > equal
        capped = min(rate, sparsity) if growing and sparsity < dense_threshold else rate
        losses.append(math.ceil(capped * layer.active - _CEILING_SLACK))
    return losses


def _choose(
    role: str,
    choose: Prune | Grow,
    layer: LayerState,
    count: int,
    candidates: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Ask a prune or grow function for ``count`` of the candidates, if any, and hold it to that."""
    if count == 0:
        return torch.zeros_like(candidates)
    chosen = choose(layer, count, generator)
    problem = _problem(chosen, count, candidates, "active" if role == "prune" else "inactive")
    if problem:
        raise CycleError(f"{role} {_name(choose)!r} on layer {layer.name!r} {problem}")
    return chosen


def _problem(chosen: Any, count: int, candidates: Tensor, kind: str) -> str:
    """What is wrong with a choice, empty if nothing."""
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != candidates.shape:
        got = f"{chosen.dtype} {tuple(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
        return f"must return a bool tensor of shape {tuple(candidates.shape)}, not {got}"
    if bool((chosen & ~candidates).any()):
        return f"chose positions that are not {kind}"
    if int(chosen.sum()) != count:
        return f"chose {int(chosen.sum())} positions instead of {count}"
    return ""


def _record(layer: LayerState, loss: int, gain: int, share: Fraction) -> LayerRecord:
    active = layer.active - loss + gain
    density = active / max(1, layer.numel)
    return LayerRecord(layer.name, loss, gain, float(share), density, active, layer.numel)


def _name(function: object) -> str:
    return getattr(function, "__name__", repr(function))
