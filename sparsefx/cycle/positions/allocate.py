"""Divide a whole number among layers by their shares, exactly, with a ceiling for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from sparsefx.errors import ArgumentError


def allocate(total: int, shares: Sequence[float | Fraction], capacities: Sequence[int]) -> list[int]:
    """Divide ``total`` in proportion to ``shares``; no part exceeds its capacity.

    What exceeds a capacity is spread equally over the other layers, again and again until it all
    fits (Dettmers & Zettlemoyer 2019, section 3.2, made exact). Parts are then rounded by largest
    remainder; of equal remainders the lower index is rounded up.

    The arithmetic is rational, so the parts sum to ``total`` always and rounding errors break no tie.

    Args:
        total: what to divide, at least 0.
        shares: nonnegative and finite, not all 0 unless ``total`` is; need not sum to 1.
        capacities: the most each part may be.

    Returns:
        One integer a share, between 0 and its capacity, with sum ``total``.

    Raises:
        ArgumentError: the shares cannot be used, or the capacities do not hold ``total``.

    Example:
        >>> allocate(11, [0.1, 0.3, 0.6], [95, 45, 2])
        [3, 6, 2]
    """
    _check(total, shares, capacities)
    if total == 0:
        return [0] * len(capacities)
    return _round(total, _spread(total, shares, capacities))


def _check(total: int, shares: Sequence[float | Fraction], capacities: Sequence[int]) -> None:
    if len(shares) != len(capacities):
        raise ArgumentError(f"shares has {len(shares)} entries, capacities has {len(capacities)}")
    if not all(math.isfinite(share) and share >= 0 for share in shares):
        raise ArgumentError(f"shares must be finite and not negative, got {list(shares)}")
    if not 0 <= total <= sum(capacities):
        raise ArgumentError(f"total={total} is not between 0 and the sum of capacities, {sum(capacities)}")
    if total > 0 and not any(shares):
        raise ArgumentError("shares are all 0; at least one must be positive")


def _spread(total: int, shares: Sequence[float | Fraction], capacities: Sequence[int]) -> list[Fraction]:
    """The real-valued parts: proportional, and what does not fit spread equally over the rest."""
    weights = [Fraction(share) for share in shares]
    scale = total / sum(weights, Fraction(0))
    parts = [scale * weight for weight in weights]
    while over := [i for i, part in enumerate(parts) if part > capacities[i]]:
        excess = sum((parts[i] - capacities[i] for i in over), Fraction(0))
        for i in over:
            parts[i] = Fraction(capacities[i])
        room = [i for i, part in enumerate(parts) if part < capacities[i]]
        for i in room:
            parts[i] += excess / len(room)
    return parts


def _round(total: int, parts: Sequence[Fraction]) -> list[int]:
    """Largest remainder. A part with a remainder is below its capacity, so rounding up fits."""
    counts = [math.floor(part) for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda i: (counts[i] - parts[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
