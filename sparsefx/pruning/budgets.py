"""How many weights stay when masks shrink: in each round, and among which layers."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

from sparsefx._common.distributions import Distribution, active_counts
from sparsefx.cycle.positions.allocate import allocate
from sparsefx.cycle.updates.densities import geometric
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import MaskedWeight

Pool = tuple[list[MaskedWeight], int]
"""Layers whose weights compete with each other, and how many of them stay."""


def falling_densities(layers: Sequence[MaskedWeight], density: float, rounds: int) -> list[float]:
    """The density after each round: ``present * (density / present)^(round / rounds)``.

    Tanaka et al. 2020, from the present density, which is 1 there.

    Raises:
        ArgumentError: the density is outside (0, 1] or above the present one.
    """
    if not isinstance(density, numbers.Real) or not 0 < density <= 1:
        raise ArgumentError(f"density={density!r} is outside (0, 1]; 0.05 keeps 5% of the weights")
    total, active = sum(layer.mask.numel() for layer in layers), _active(layers)
    if round(density * total) > active:
        raise ArgumentError(
            f"density={density!r} keeps {round(density * total)} weights, but only {active} of {total} are "
            "active; pruning only removes, so ask for less"
        )
    present = active / total
    inner = [geometric(present, density, done / rounds) for done in range(1, rounds)]
    return [*inner, density]


def pools_of(
    layers: list[MaskedWeight], density: float, scope: str, distribution: str | Distribution | None
) -> list[Pool]:
    """Which layers compete, and for how many places: all of them, or each for its own share.

    Raises:
        ArgumentError: ``distribution`` is unknown, broke its contract, or asks for more than is active.
    """
    if scope == "global":
        return [(layers, round(density * sum(layer.mask.numel() for layer in layers)))]
    counts = active_counts([layer.mask.shape for layer in layers], density, distribution or "uniform")
    if sum(counts) > _active(layers):
        raise ArgumentError(
            f"distribution={distribution!r} keeps {sum(counts)} weights, but only {_active(layers)} are "
            "active; pruning only removes, so ask for less"
        )
    capped = allocate(sum(counts), counts, [_active([layer]) for layer in layers])
    return [([layer], count) for layer, count in zip(layers, capped, strict=True)]


def _active(layers: Sequence[MaskedWeight]) -> int:
    return sum(int(layer.mask.sum()) for layer in layers)
