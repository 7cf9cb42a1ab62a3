"""How the prune rate falls over training: pure functions of progress, so resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

Decay = Callable[[float, float], float]


def cosine(prune_rate: float, progress: float, floor: float = 0.0) -> float:
    """Half a cosine from ``prune_rate`` to ``floor`` (Dettmers & Zettlemoyer 2019, section 3.2).

    Args:
        prune_rate: the rate at progress 0.
        progress: fraction of training done; taken as 0 below 0 and as 1 above 1.
        floor: the rate at progress 1.

    Example:
        >>> cosine(0.5, 0.0), round(cosine(0.5, 0.25), 5), cosine(0.5, 1.0)
        (0.5, 0.42678, 0.0)
    """
    return floor + 0.5 * (prune_rate - floor) * (1 + math.cos(math.pi * _clamp(progress)))


def linear(prune_rate: float, progress: float, floor: float = 0.0) -> float:
    """A straight line from ``prune_rate`` at progress 0 to ``floor`` at progress 1."""
    return floor + (prune_rate - floor) * (1 - _clamp(progress))


def constant(prune_rate: float, progress: float, floor: float = 0.0) -> float:
    """``prune_rate`` throughout, never below ``floor`` (SET: Mocanu et al. 2018)."""
    return max(prune_rate, floor)


def _clamp(progress: float) -> float:
    return min(1.0, max(0.0, progress))


def cosine_to_half_percent(prune_rate: float, progress: float) -> float:
    """:func:`cosine` that ends at 0.005, as in the code published with Dettmers & Zettlemoyer 2019."""
    return cosine(prune_rate, progress, floor=0.005)


DECAY: dict[str, Decay] = {
    "cosine": cosine,
    "cosine_to_half_percent": cosine_to_half_percent,
    "linear": linear,
    "constant": constant,
}
