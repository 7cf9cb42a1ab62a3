"""Integer allocation: exact sums, capacities, ties, the spreading of excess."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle.positions.allocate import allocate
from sparsefx.errors import ArgumentError


@st.composite
def problems(draw):
    capacities = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
    shares = draw(st.lists(st.floats(0, 1e6), min_size=len(capacities), max_size=len(capacities)))
    total = draw(st.integers(0, sum(capacities)))
    return total, [*shares[:-1], shares[-1] or 1.0], capacities


@properties()
@given(problems())
def test_sums_exactly_within_capacities(problem):
    total, shares, capacities = problem
    parts = allocate(total, shares, capacities)
    assert sum(parts) == total
    assert all(0 <= part <= capacity for part, capacity in zip(parts, capacities, strict=True))


@properties()
@given(problems())
def test_without_overflow_each_part_is_its_quota_rounded(problem):
    total, shares, capacities = problem
    parts = allocate(total, shares, [total] * len(capacities))
    whole = sum(map(Fraction, shares))
    for part, share in zip(parts, shares, strict=True):
        quota = total * Fraction(share) / whole
        assert math.floor(quota) <= part <= math.ceil(quota)


@properties()
@given(problems(), st.sampled_from([2.0**-20, 3.0, 1024.0]))
def test_scaling_by_a_power_of_two_changes_nothing(problem, scale):
    total, shares, capacities = problem
    factor = 2.0 ** math.floor(math.log2(scale))
    shares = [round(share) for share in shares[:-1]] + [1.0]
    assert allocate(total, [share * factor for share in shares], capacities) == allocate(
        total, shares, capacities
    )


@pytest.mark.parametrize(
    ("total", "shares", "capacities", "expected"),
    [
        (11, [0.1, 0.3, 0.6], [95, 45, 2], [3, 6, 2]),  # the excess 4.6 is spread equally: 3.4, 5.6, 2
        (10, [1, 1, 1], [10, 10, 10], [4, 3, 3]),  # equal remainders: lower index first
        (5, [1, 1], [10, 10], [3, 2]),
        (10, [1, 0, 0], [4, 3, 10], [4, 3, 3]),  # a layer with share 0 takes excess, and passes it on
        (6, [5, 1], [3, 3], [3, 3]),
        (0, [0.0, 0.0], [1, 1], [0, 0]),
        (3, [0.5, 0.5, 1e-300], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_by_hand(total, shares, capacities, expected):
    assert allocate(total, shares, capacities) == expected


@pytest.mark.parametrize(
    ("total", "shares", "capacities", "message"),
    [
        (1, [1.0], [1, 1], "shares has 1 entries, capacities has 2"),
        (1, [math.nan, 1.0], [1, 1], "finite and not negative"),
        (1, [-1.0, 1.0], [1, 1], "finite and not negative"),
        (3, [1.0, 1.0], [1, 1], "total=3 is not between 0 and the sum of capacities, 2"),
        (-1, [1.0], [1], "total=-1"),
        (1, [0.0, 0.0], [1, 1], "shares are all 0"),
    ],
)
def test_wrong_arguments(total, shares, capacities, message):
    with pytest.raises(ArgumentError, match=message):
        allocate(total, shares, capacities)
