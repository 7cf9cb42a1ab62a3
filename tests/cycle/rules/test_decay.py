"""Decay of the prune rate: published values, ends, clamping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle import DECAY
from sparsefx.cycle.rules.decay import constant, cosine, linear


@pytest.mark.parametrize(
    ("progress", "rate"), [(0, 0.5), (0.25, 0.42678), (0.5, 0.25), (0.75, 0.07322), (1, 0)]
)
def test_cosine_values(progress, rate):
    assert cosine(0.5, progress) == pytest.approx(rate, abs=5e-6)


@pytest.mark.parametrize(("progress", "rate"), [(0.25, 0.42751), (0.5, 0.2525), (0.75, 0.07749), (1, 0.005)])
def test_cosine_values_with_floor(progress, rate):
    assert cosine(0.5, progress, floor=0.005) == pytest.approx(rate, abs=5e-6)


def test_linear_and_constant_values():
    assert linear(0.4, 0.25) == pytest.approx(0.3)
    assert linear(0.4, 0.5, floor=0.2) == pytest.approx(0.3)
    assert constant(0.4, 1.0) == 0.4
    assert constant(0.1, 1.0, floor=0.2) == 0.2


@pytest.mark.parametrize("decay", [cosine, linear])
def test_exactly_zero_at_the_end_and_after(decay):
    assert decay(0.5, 1.0) == 0.0
    assert decay(0.5, 7.0) == 0.0
    assert decay(0.5, -1.0) == 0.5


@properties()
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(sorted(DECAY)))
def test_within_the_rate_and_falling(rate, one, other, name):
    early, late = sorted((one, other))
    rate = max(rate, 0.005)  # where one of them ends
    assert 0 <= DECAY[name](rate, late) <= DECAY[name](rate, early) + 1e-12 <= rate + 2e-12
