"""Distributions: how a total density is divided among layers.

Densities count maskable weights only. Every built-in distribution gives layer ``i`` the density
``min(1, epsilon * ratio_i)``, with the one epsilon that makes the total exact. Layers that would exceed
density 1 are dense, and the others take the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from sparsefx.errors import ArgumentError, unknown_name

Distribution = Callable[[Sequence[torch.Size], float], "list[float]"]


def uniform(shapes: Sequence[torch.Size], density: float) -> list[float]:
    """The same density in every layer.

    Args:
        shapes: each layer's weight shape.
        density: fraction of all these weights to keep, in [0, 1].

    Returns:
        One density in [0, 1] a layer, here and in every other distribution.
    """
    _check_density(density)
    return [float(density)] * len(shapes)


def erdos_renyi(shapes: Sequence[torch.Size], density: float) -> list[float]:
    """Density proportional to ``(out + in) / (out * in)``, whatever the kernel size (Evci et al. 2020)."""
    _check_shapes(shapes)
    ratios = [(shape[0] + shape[1]) / (shape[0] * shape[1]) for shape in shapes]
    return _saturate(ratios, shapes, density)


def erdos_renyi_kernel(shapes: Sequence[torch.Size], density: float) -> list[float]:
    """Density proportional to the sum of all dimensions over their product (ERK, Evci et al. 2020).

    For a linear layer that is Erdos-Renyi. In a grouped convolution ``in`` is what one group reads.
    """
    _check_shapes(shapes)
    ratios = [sum(shape) / math.prod(shape) for shape in shapes]
    return _saturate(ratios, shapes, density)


def set_linear(shapes: Sequence[torch.Size], density: float) -> list[float]:
    """Active weights, rather than density, proportional to ``out + in`` (SET: Mocanu et al. 2018).

    For a linear layer that is Erdos-Renyi; a convolution's kernel adds no weights.
    """
    _check_shapes(shapes)
    ratios = [(shape[0] + shape[1]) / math.prod(shape) for shape in shapes]
    return _saturate(ratios, shapes, density)


DISTRIBUTIONS: dict[str, Distribution] = {
    "uniform": uniform,
    "erdos_renyi": erdos_renyi,
    "er": erdos_renyi,
    "erk": erdos_renyi_kernel,
    "set": set_linear,
}


def active_counts(
    shapes: Sequence[torch.Size],
    density: float,
    distribution: str | Distribution = "uniform",
    outputs: Sequence[int] | None = None,
) -> list[int]:
    """How many weights each layer keeps.

    No layer keeps fewer weights than it has outputs: what small layers need, the others give in proportion.
    Where the total is less than all outputs together, each layer keeps a share of it by its outputs, and at
    least one weight, if there are so many. Of a function, a layer keeps what it asks for, and at least one
    weight where that is more than 0.

    Densities times sizes are rounded by largest remainder; among equal remainders the lower index is rounded
    up. So the sum is exactly ``round(density * total)``, or for a callable the rounded sum of what it asks.

    Args:
        shapes: each layer's weight shape.
        density: fraction of all these weights to keep, in [0, 1].
        distribution: a name in :data:`DISTRIBUTIONS`, or a callable ``(shapes, density)`` that
            returns each layer's density.
        outputs: each layer's number of outputs; by default the first dimension of its weight.

    Returns:
        One count a layer, between 0 and the layer's size.

    Raises:
        ArgumentError: the density is not in [0, 1], the name is not registered, or the callable returned
            something other than one density in [0, 1] a layer.

    Example:
        >>> active_counts([torch.Size((300, 784)), torch.Size((10, 300))], 0.1)
        [23520, 300]
        >>> active_counts([torch.Size((16, 100)), torch.Size((1, 16))], 0.02)  # not [32, 0]
        [31, 1]
    """
    _check_density(density)
    densities = _densities(shapes, density, distribution)
    sizes = [math.prod(shape) for shape in shapes]
    wanted = [size * share for size, share in zip(sizes, densities, strict=True)]
    total = round(density * sum(sizes)) if isinstance(distribution, str) else round(math.fsum(wanted))
    levels: list[Sequence[float]] = [wanted]
    if isinstance(distribution, str):
        levels.append(_outputs(shapes) if outputs is None else outputs)
    levels += [[float(want > 0) for want in wanted], [0.0] * len(shapes)]
    ask, least = next((ask, least) for ask, least in pairwise(levels) if sum(least) <= total)
    return _round(total, _at_least(least, ask, total), sizes)


def _outputs(shapes: Sequence[torch.Size]) -> list[int]:
    return [min(shape[0] if len(shape) > 1 else 1, math.prod(shape)) for shape in shapes]


def _at_least(least: Sequence[float], wanted: Sequence[float], total: int) -> list[float]:
    """What is wanted, but at least so much each and no more in all: what is not raised shrinks in proportion.

    A sum that only rounds to the total is left to the rounding.
    """
    asked, raised = math.fsum(wanted), set[int]()
    parts = [want * total / asked for want in wanted] if asked >= total + 1 else list(wanted)
    while below := [i for i, part in enumerate(parts) if part < least[i] and i not in raised]:
        raised.update(below)
        rest = [i for i in range(len(parts)) if i not in raised]
        left = total - sum(least[i] for i in raised)
        scale = left / (math.fsum(wanted[i] for i in rest) or 1)
        parts = [least[i] if i in raised else want * min(1, scale) for i, want in enumerate(wanted)]
    return parts


def _round(total: int, parts: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Largest remainder."""
    counts = [math.floor(part) for part in parts]
    open_layers = [i for i, size in enumerate(sizes) if counts[i] < size]
    by_remainder = sorted(open_layers, key=lambda i: (counts[i] - parts[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _densities(shapes: Sequence[torch.Size], density: float, distribution: str | Distribution) -> list[float]:
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise unknown_name("distribution", distribution, DISTRIBUTIONS)
        return DISTRIBUTIONS[distribution](shapes, density)
    if not callable(distribution):
        raise ArgumentError(
            f"distribution={distribution!r} is neither a name nor a function; densities layer by layer come "
            "from a function (shapes, density) -> densities"
        )
    densities = list(distribution(shapes, density))
    if len(densities) != len(shapes) or not all(0 <= value <= 1 for value in densities):
        name = getattr(distribution, "__name__", repr(distribution))
        raise ArgumentError(
            f"distribution {name!r} returned {densities} for {len(shapes)} layers; "
            "it must return one density in [0, 1] a layer"
        )
    return densities


def _saturate(ratios: Sequence[float], shapes: Sequence[torch.Size], density: float) -> list[float]:
    """Solve ``sum(size * min(1, epsilon * ratio)) = density * sum(size)`` and return the densities.

    The layers of largest ratio become dense one by one until epsilon leaves the next below 1.
    """
    _check_density(density)
    sizes = [math.prod(shape) for shape in shapes]
    budget = density * sum(sizes)
    densities = [1.0] * len(shapes)
    order = sorted(range(len(shapes)), key=lambda i: -ratios[i])
    for position, first in enumerate(order):
        rest = order[position:]
        epsilon = budget / math.fsum(ratios[i] * sizes[i] for i in rest)
        if epsilon * ratios[first] <= 1:
            for i in rest:
                densities[i] = epsilon * ratios[i]
            break
        budget -= sizes[first]
    return densities


def _check_density(density: float) -> None:
    if not 0 <= density <= 1:
        raise ArgumentError(f"density={density!r} is not in [0, 1]")


def _check_shapes(shapes: Sequence[torch.Size]) -> None:
    for shape in shapes:
        if len(shape) < 2 or math.prod(shape) == 0:
            raise ArgumentError(
                f"shape {tuple(shape)} has no (out, in) dimensions to divide by; use distribution='uniform'"
            )
