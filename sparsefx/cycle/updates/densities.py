"""How the density falls while a dense network becomes sparse: pure functions of progress."""

from __future__ import annotations

from collections.abc import Callable

Densities = Callable[[float, float, float], float]


def cubic(start: float, final: float, progress: float) -> float:
    """Fast at first, flat at the end: sparsity rises as ``1 - (1 - progress)^3`` (Zhu & Gupta 2018, eq. 1).

    Args:
        start: the density at progress 0.
        final: the density at progress 1.
        progress: fraction of the pruning done; taken as 0 below 0 and as 1 above 1.

    Example:
        >>> round(1 - cubic(1.0, 0.1, 0.25), 4), round(1 - cubic(1.0, 0.1, 0.5), 4), cubic(1.0, 0.1, 1.0)
        (0.5203, 0.7875, 0.1)
    """
    rest = 1 - min(1.0, max(0.0, progress))
    return final + (start - final) * rest**3


def geometric(start: float, final: float, progress: float) -> float:
    """The same factor in equal parts of progress: every pruning removes the same fraction of what is left."""
    done = min(1.0, max(0.0, progress))
    return float(start * (final / start) ** done)


def at_once(start: float, final: float, progress: float) -> float:
    """The final density from the first update on."""
    return final


DENSITIES: dict[str, Densities] = {"cubic": cubic, "geometric": geometric, "at_once": at_once}
