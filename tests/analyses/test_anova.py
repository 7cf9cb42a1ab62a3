"""The analysis of variance by hand, its p-values against closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.analyses.anova import Anova, f_tail, two_way_anova
from sparsefx.errors import ArgumentError


def test_a_balanced_design_by_hand() -> None:
    # Cell means 4, 8 / 6, 14; rows 6, 10; columns 5, 11; grand mean 8; two values a cell, 1 off its mean.
    found = two_way_anova({("a", "x"): [3, 5], ("a", "y"): [7, 9], ("b", "x"): [5, 7], ("b", "y"): [13, 15]})
    assert found.first.sum_of_squares == pytest.approx(32)  # 4 * (2^2 + 2^2)
    assert found.second.sum_of_squares == pytest.approx(72)  # 4 * (3^2 + 3^2)
    assert found.interaction.sum_of_squares == pytest.approx(8)  # 2 * 4 cells * 1^2
    assert (found.residual, found.residual_degrees) == (8, 4)
    assert found.first.f == pytest.approx(16)
    assert found.second.f == pytest.approx(36)
    assert found.interaction.f == pytest.approx(4)
    assert [effect.degrees for effect in (found.first, found.second, found.interaction)] == [1, 1, 1]
    assert found.interaction.p == pytest.approx(0.1161, abs=5e-5)  # t = 2 with 4 degrees, both sides
    assert found.first.p == pytest.approx(0.0161, abs=5e-5)


def test_an_unbalanced_design_by_hand() -> None:
    # Additive values 0, 1 / 2, 3 and one group of three: both effects exact, nothing left over but noise.
    found = two_way_anova({("a", "x"): [-1, 0, 1], ("a", "y"): [1], ("b", "x"): [2], ("b", "y"): [3]})
    assert found.interaction.sum_of_squares == pytest.approx(0, abs=1e-12)
    assert (found.residual, found.residual_degrees) == (2, 2)
    # Beyond the columns, the rows explain 2^2 * sum over columns of n_a n_b / (n_a + n_b) = 4 (3/4 + 1/2).
    assert found.first.sum_of_squares == pytest.approx(5)
    assert found.second.sum_of_squares == pytest.approx(1.25)


def test_more_levels() -> None:
    groups = {(a, b): [i + 2 * j + 1, i + 2 * j - 1] for i, a in enumerate("abc") for j, b in enumerate("xy")}
    found = two_way_anova(groups)
    assert [e.degrees for e in (found.first, found.second, found.interaction)] == [2, 1, 2]
    assert found.first.sum_of_squares == pytest.approx(8)  # 4 values at each of -1, 0, 1
    assert found.second.sum_of_squares == pytest.approx(12)  # 6 values at each of -1, 1
    assert found.residual_degrees == 6


numbers = st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=4)


def four(found: list[list[float]]) -> dict[tuple[str, str], list[float]]:
    return dict(zip([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")], found, strict=True))


def sums(found: Anova) -> list[float]:
    return [e.sum_of_squares for e in (found.first, found.second, found.interaction)] + [found.residual]


@properties(40)
@given(st.lists(numbers, min_size=4, max_size=4), st.integers(-5, 5))
def test_a_shift_changes_nothing_and_a_scale_squares(found: list[list[float]], shift: int) -> None:
    plain = two_way_anova(four(found))
    moved = two_way_anova(four([[3 * value + shift for value in values] for values in found]))
    assert sums(moved) == pytest.approx([9 * each for each in sums(plain)], abs=1e-8)


@properties(40)
@given(st.lists(st.lists(st.integers(-9, 9).map(float), min_size=3, max_size=3), min_size=4, max_size=4))
def test_of_a_balanced_design_the_sums_add_up(found: list[list[float]]) -> None:
    every = [value for values in found for value in values]
    total = sum((value - sum(every) / len(every)) ** 2 for value in every)
    assert sum(sums(two_way_anova(four(found)))) == pytest.approx(total, abs=1e-8)


@properties()
@given(st.floats(0, 50), st.integers(1, 3000))
def test_tail_with_two_degrees(f: float, residual: int) -> None:
    assert f_tail(f, 2, residual) == pytest.approx((1 + 2 * f / residual) ** (-residual / 2), rel=1e-8)


@properties()
@given(st.floats(0.01, 50), st.integers(1, 3000))
def test_tail_is_the_complement_of_the_inverse(f: float, degrees: int) -> None:
    assert f_tail(f, degrees, 7) == pytest.approx(1 - f_tail(1 / f, 7, degrees), abs=1e-9)


def test_tail_with_one_degree_each() -> None:
    assert f_tail(3.0, 1, 1) == pytest.approx(1 - 2 / math.pi * math.atan(math.sqrt(3)))
    assert f_tail(0.0, 3, 5) == 1
    assert f_tail(math.inf, 3, 5) == 0


def test_groups_without_noise() -> None:
    found = two_way_anova({("a", "x"): [1, 1], ("a", "y"): [1, 1], ("b", "x"): [2, 2], ("b", "y"): [2, 2]})
    assert (found.first.f, found.first.p) == (math.inf, 0)


def test_what_cannot_be_analysed() -> None:
    with pytest.raises(ArgumentError, match="each factor needs at least two"):
        two_way_anova({("a", "x"): [1, 2], ("a", "y"): [1, 2]})
    with pytest.raises(ArgumentError, match=r"groups has no value for \[\('b', 'x'\)\]"):
        two_way_anova({("a", "x"): [1, 2], ("a", "y"): [1, 2], ("b", "x"): [], ("b", "y"): [3]})
    with pytest.raises(ArgumentError, match="one value for each combination"):
        two_way_anova({("a", "x"): [1], ("a", "y"): [1], ("b", "x"): [2], ("b", "y"): [3]})


def test_the_printed_table() -> None:
    groups = {("a", "x"): [3, 5], ("a", "y"): [7, 9], ("b", "x"): [5, 7], ("b", "y"): [13, 15]}
    lines = str(two_way_anova(groups)).splitlines()
    assert lines[2].split() == ["first", "32", "1", "16", "0.0161"]
    assert lines[5].split() == ["residual", "8", "4"]
