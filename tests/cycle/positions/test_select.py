"""The choice of the largest scores, against a plain sort."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle.positions.select import select_largest

# So few that there are ties.
FEW_VALUES = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 1e-40, 0.5, 3.0, math.inf])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@properties()
@given(data=st.data())
def test_the_choice_is_that_of_a_stable_sort(dtype, data):
    scores = torch.tensor(data.draw(st.lists(FEW_VALUES, min_size=1, max_size=40)), dtype=dtype)
    candidates = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    count = data.draw(st.integers(0, int(candidates.sum())))
    among = [index for index in range(len(scores)) if candidates[index]]
    expected = set(sorted(among, key=lambda index: -float(scores[index]))[:count])
    chosen = select_largest(scores, candidates, count)
    assert {index for index in range(len(scores)) if chosen[index]} == expected


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 6, 5, 5)])
def test_positions_are_those_of_the_scores_whatever_their_strides(shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    candidates = scores > 0.2
    count = int(candidates.sum()) // 2
    chosen = select_largest(scores, candidates, count)
    assert chosen.shape == scores.shape
    assert chosen.count_nonzero() == count
    assert scores[chosen].min() >= scores[candidates & ~chosen].max()
