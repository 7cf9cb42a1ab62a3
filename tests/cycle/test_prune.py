"""Magnitude pruning: exact counts, ties, zeros, NaN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefx.cycle import PRUNE, LayerState
from sparsefx.cycle.prune import magnitude


def state(weight, mask, dtype=torch.float32):
    return LayerState("layer", torch.tensor(weight, dtype=dtype), torch.tensor(mask, dtype=torch.bool))


@pytest.mark.parametrize(
    ("weight", "mask", "count", "expected"),
    [
        ([3.0, -1.0, 2.0, 0.0], [1, 1, 1, 0], 1, [0, 1, 0, 0]),
        ([1.0, -1.0, 1.0, 1.0], [1, 1, 1, 1], 2, [1, 1, 0, 0]),  # a tie: lowest index
        ([2.0, 1.0, -1.0, 1.0, 0.5], [1, 1, 1, 1, 1], 3, [0, 1, 1, 0, 1]),  # a tie at the threshold
        ([0.0, 0.0, 0.0, 5.0], [0, 1, 0, 1], 1, [0, 1, 0, 0]),  # an active zero before inactive ones
        ([0.0, 0.0, 0.0, 5.0], [0, 1, 0, 1], 2, [0, 1, 0, 1]),
        ([1.0, 2.0], [1, 1], 0, [0, 0]),
        ([float("nan"), 1.0, float("-inf")], [1, 1, 1], 2, [1, 1, 0]),  # what is not finite is largest
    ],
)
def test_by_hand(weight, mask, count, expected):
    assert magnitude(state(weight, mask), count, None).int().tolist() == expected


@pytest.mark.parametrize("name", sorted(PRUNE))
@given(seed=st.integers(0, 2**20), data=st.data())
@settings(deadline=None, max_examples=60)
def test_removes_the_smallest_active(name, seed, data):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 7, generator=generator) < 0.6
    weight = torch.randint(-3, 4, (4, 7), generator=generator) * mask / 2
    layer = LayerState("layer", weight, mask)
    count = data.draw(st.integers(0, layer.active))
    pruned = PRUNE[name](layer, count, generator)
    assert pruned.dtype == torch.bool
    assert pruned.shape == mask.shape
    assert int(pruned.sum()) == count
    assert not (pruned & ~mask).any()
    kept = mask & ~pruned
    if count and kept.any():
        assert weight[pruned].abs().max() <= weight[kept].abs().min()


def test_float64_is_ranked_in_float64():
    weight = [1.0, 1.0 - 1e-12]
    assert magnitude(state(weight, [1, 1], torch.float64), 1, None).tolist() == [False, True]
    assert magnitude(state(weight, [1, 1], torch.bfloat16), 1, None).tolist() == [True, False]


def test_ties_follow_the_logical_order_in_channels_last():
    weight = torch.ones(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    mask = torch.ones_like(weight, dtype=torch.bool)
    pruned = magnitude(LayerState("layer", weight, mask), 5, None)
    assert pruned.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
