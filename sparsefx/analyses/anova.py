"""Two-way analysis of variance, for groups of any sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx._common.table import Table, Tabular
from sparsefx.errors import ArgumentError

_TERMS = 300  # of the continued fraction; it has converged long before


@dataclass(frozen=True)
class Effect:
    """What a factor, or the interaction of both, explains.

    Attributes:
        sum_of_squares: explained beyond the other factor (of the interaction: beyond both).
        degrees: degrees of freedom.
        f: mean square over that of the residuals.
        p: probability of an F at least so large if there were no effect.
    """

    sum_of_squares: float
    degrees: int
    f: float
    p: float


@dataclass(frozen=True)
class Anova(Tabular):
    """A two-way analysis of variance; ``print`` shows the usual table.

    Attributes:
        first: effect of the first factor.
        second: effect of the second factor.
        interaction: effect of both together beyond their sum.
        residual: sum of squares within the groups.
        residual_degrees: its degrees of freedom.
    """

    first: Effect
    second: Effect
    interaction: Effect
    residual: float
    residual_degrees: int

    def _table(self) -> Table:
        effects = {"first": self.first, "second": self.second, "interaction": self.interaction}
        rows = [
            [name, f"{effect.sum_of_squares:.6g}", str(effect.degrees), f"{effect.f:.4g}", f"{effect.p:.3g}"]
            for name, effect in effects.items()
        ]
        rows.append(["residual", f"{self.residual:.6g}", str(self.residual_degrees), "", ""])
        return Table(["effect", "sum of squares", "df", "F", "p"], rows)


def two_way_anova(groups: Mapping[tuple[str, str], Sequence[float] | Tensor]) -> Anova:
    """Two-way analysis of variance with interaction and type II sums of squares.

    Type II: each factor is tested beyond the other, which for groups of one size is the textbook's
    analysis, and for groups of different sizes counts nothing twice.

    Args:
        groups: the values of every combination of a level of the first factor with one of the second,
            each a vector.

    Raises:
        ArgumentError: a factor has one level, a combination has no value, or no two values share one.

    Example:
        >>> ax, ay, bx, by = [1, 3], [5, 7], [2, 4], [6, 8]
        >>> found = two_way_anova({("a", "x"): ax, ("a", "y"): ay, ("b", "x"): bx, ("b", "y"): by})
        >>> round(found.first.sum_of_squares, 6), round(found.second.sum_of_squares, 6), found.residual
        (2.0, 32.0, 8.0)
    """
    values = {key: torch.as_tensor(found, dtype=torch.float64) for key, found in groups.items()}
    firsts, seconds = (list(dict.fromkeys(key[side] for key in values)) for side in (0, 1))
    _check(values, firsts, seconds)
    y = torch.cat(list(values.values()))
    columns = {
        "first": [[key[0] == level for level in firsts] for key in values],
        "second": [[key[1] == level for level in seconds] for key in values],
    }
    sizes = torch.tensor([len(found) for found in values.values()])
    first, second = (torch.tensor(columns[name]).double().repeat_interleave(sizes, 0) for name in columns)
    both = _residual(y, torch.cat([first, second], 1))
    within = sum(float((found - found.mean()).square().sum()) for found in values.values())
    degrees = len(y) - len(values)

    def effect(sum_of_squares: float, freedom: int) -> Effect:
        found = max(0.0, sum_of_squares)
        f = found / freedom / (within / degrees) if within else math.inf if found else math.nan
        return Effect(found, freedom, f, f_tail(f, freedom, degrees))

    a, b = len(firsts) - 1, len(seconds) - 1
    return Anova(
        effect(_residual(y, second) - both, a),
        effect(_residual(y, first) - both, b),
        effect(both - within, a * b),
        within,
        degrees,
    )


def f_tail(f: float, degrees: int, residual_degrees: int) -> float:
    """Probability that a variable of the F distribution exceeds ``f``.

    Args:
        f: at least 0.
        degrees: of the numerator.
        residual_degrees: of the denominator.

    Example:
        >>> round(f_tail(4.96, 1, 10), 3)
        0.05
    """
    if not math.isfinite(f):
        return 0.0 if f == math.inf else math.nan
    x = residual_degrees / (residual_degrees + degrees * f)
    return _incomplete_beta(x, residual_degrees / 2, degrees / 2)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction on the side where that is fast."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    fraction = 1.0
    for m in range(_TERMS, 0, -1):  # from the innermost term outwards
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1 + odd / (1 + even / fraction)
    return math.exp(log_front) / (a * fraction)


def _residual(y: Tensor, design: Tensor) -> float:
    """Sum of squares that a linear model leaves."""
    fitted = design @ torch.linalg.pinv(design) @ y
    return float((y - fitted).square().sum())


def _check(values: Mapping[tuple[str, str], Tensor], firsts: Sequence[str], seconds: Sequence[str]) -> None:
    if len(firsts) < 2 or len(seconds) < 2:
        raise ArgumentError(f"groups has the levels {firsts} and {seconds}; each factor needs at least two")
    empty = [(a, b) for a in firsts for b in seconds if not len(values.get((a, b), ()))]
    if empty:
        raise ArgumentError(f"groups has no value for {empty}; every combination of levels needs one")
    if sum(map(len, values.values())) == len(values):
        raise ArgumentError("groups has one value for each combination; at least one needs two")
