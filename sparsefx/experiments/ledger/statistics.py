"""Means over seeds, with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sparsefx.errors import ArgumentError

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Mean:
    """A mean over runs.

    Attributes:
        n: number of runs.
        value: their mean.
        standard_error: ``std / sqrt(n)``, the standard deviation with ``n - 1``; None for one run.
    """

    n: int
    value: float
    standard_error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval, 1.96 standard errors to either side; None for one run."""
        if self.standard_error is None:
            return None
        half = _NORMAL_95 * self.standard_error
        return self.value - half, self.value + half


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one value.

    Raises:
        ArgumentError: there is no value.

    Example:
        >>> mean_of([1.0, 2.0, 3.0]).value
        2.0
    """
    if not values:
        raise ArgumentError("values is empty; a mean needs at least one run")
    n = len(values)
    standard_error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Mean(n, math.fsum(values) / n, standard_error)


def difference(minuend: Mean, subtrahend: Mean) -> Mean:
    """``minuend - subtrahend`` of independent means, with the standard error of the difference.

    Returns:
        ``n`` is the smaller number of runs; without a standard error if either has none.
    """
    errors = (minuend.standard_error, subtrahend.standard_error)
    known = [error for error in errors if error is not None]
    combined = math.hypot(*known) if len(known) == len(errors) else None
    return Mean(min(minuend.n, subtrahend.n), minuend.value - subtrahend.value, combined)
