"""Thin dense: the baseline that spends a sparse network's parameters on a narrower dense one.

From Mostafa & Wang (2019, section 4), who count for the sparse network the mask's bits too. Their rule is
inferred from the sizes of their networks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache

import torch
from torch import nn

from sparsefx.errors import ArgumentError
from sparsefx.experiments.networks.network import Network
from sparsefx.masking.selection import Selector, find_candidates, select_dense

_STEPS = 10_000  # a width factor is a multiple of 1 / _STEPS
_WORD = 32  # bits of a parameter


def sparse_parameters(
    model: nn.Module,
    density: float,
    *,
    dense: Selector | Iterable[Selector] = (),
    count_mask_bits: bool = True,
) -> int:
    """The storage of a sparse network in 32-bit words: its parameters and, by default, its masks.

    Args:
        model: the dense network; its parameters may be on the meta device.
        density: fraction of the maskable weights that stay, in (0, 1].
        dense: layers that stay dense, as ``sparsify`` takes them.
        count_mask_bits: add one bit for each maskable weight.

    Raises:
        ArgumentError: ``density`` is outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ArgumentError(f"density={density!r} is outside (0, 1]; 0.1 keeps 10% of the weights")
    candidates = find_candidates(model, ())
    kept = select_dense(candidates, dense, model)
    pool = sum(candidate.weight.numel() for candidate in candidates if candidate.name not in kept)
    mask_words = round(pool / _WORD) if count_mask_bits else 0
    return _parameters(model) - pool + round(density * pool) + mask_words


def thin_width(network: Network, parameters: int, *, classes: int | None = None) -> float:
    """The width factor in (0, 1] at which a network is nearest in size to a number of parameters.

    The number of parameters rises with the width, in steps since widths are whole numbers: the factor is
    found by bisection over multiples of 0.0001. Of two equally near, the narrower.

    Args:
        network: which network.
        parameters: the size to meet, as :func:`sparse_parameters` gives it.
        classes: number of classes; the network's own by default.

    Raises:
        ArgumentError: the network is larger than that at the least width, or smaller at its full width.

    Example:
        >>> from sparsefx.experiments.networks import network
        >>> thin_width(network("lenet-300-100"), 133_000)
        0.5283
    """
    classes = network.classes if classes is None else classes

    @cache
    def size(step: int) -> int:
        with torch.device("meta"):
            return _parameters(network.build(classes=classes, width=step / _STEPS))

    least, most = size(1), size(_STEPS)
    if not least <= parameters <= most:
        raise ArgumentError(
            f"parameters={parameters!r} is outside what {network.name} can have, {least} to {most}"
        )
    above = bisect_left(range(_STEPS), parameters, key=lambda index: size(index + 1)) + 1
    below = max(1, above - 1)
    nearest = below if parameters - size(below) <= size(above) - parameters else above
    return nearest / _STEPS


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
