"""Means over seeds, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.errors import ArgumentError
from sparsefx.experiments.ledger.statistics import Mean, difference, mean_of


def test_by_hand() -> None:
    mean = mean_of([1.0, 2.0, 3.0, 6.0])  # deviations -2, -1, 0, 3: variance 14 / 3
    assert (mean.n, mean.value) == (4, 3.0)
    assert mean.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)
    low, high = mean.interval or (0, 0)
    assert (low, high) == pytest.approx((3 - 1.96 * math.sqrt(14 / 12), 3 + 1.96 * math.sqrt(14 / 12)))


def test_one_run_has_no_error() -> None:
    assert mean_of([1.5]) == Mean(1, 1.5, None)
    assert mean_of([1.5]).interval is None


def test_no_runs() -> None:
    with pytest.raises(ArgumentError, match="values is empty; a mean needs at least one run"):
        mean_of([])


def test_difference_by_hand() -> None:
    assert difference(Mean(5, 2.0, 0.3), Mean(3, 1.5, 0.4)) == Mean(3, 0.5, 0.5)
    assert difference(Mean(5, 2.0, 0.3), Mean(1, 1.5, None)) == Mean(1, 0.5, None)


values = st.lists(st.integers(-1000, 1000).map(float), min_size=2, max_size=20)


@properties()
@given(values, st.integers(-50, 50))
def test_a_shift_moves_the_mean_alone(found: list[float], shift: int) -> None:
    plain, moved = mean_of(found), mean_of([value + shift for value in found])
    assert moved.value == pytest.approx(plain.value + shift)
    assert moved.standard_error == pytest.approx(plain.standard_error, abs=1e-9)


@properties()
@given(values)
def test_all_values_twice_halve_the_squared_error_nearly(found: list[float]) -> None:
    n = len(found)
    once, twice = mean_of(found), mean_of(found * 2)
    assert once.standard_error is not None
    assert twice.standard_error == pytest.approx(once.standard_error * math.sqrt((n - 1) / (2 * n - 1)))
