"""What is pruned: exact counts, ties, zeros, NaN, signs, thresholds, all layers together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle import PRUNE, AdaptiveThreshold, LayerState, MagnitudeAndGradient, UpdateContext
from sparsefx.cycle.rules.prune import magnitude, magnitude_by_sign
from sparsefx.errors import CycleError


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


@properties(60)
@given(seed=st.integers(0, 2**20), data=st.data())
def test_removes_the_smallest_active(seed, data):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 7, generator=generator) < 0.6
    weight = torch.randint(-3, 4, (4, 7), generator=generator) * mask / 2
    layer = LayerState("layer", weight, mask)
    count = data.draw(st.integers(0, layer.active))
    pruned = magnitude(layer, count, generator)
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


def test_by_sign_takes_the_same_fraction_of_each():
    weight = [0.1, 2.0, 3.0, 0.5, -0.2, -4.0, 0.0, 0.0]
    layer = state(weight, [1, 1, 1, 1, 1, 1, 0, 0])
    assert magnitude_by_sign(layer, 3, None).int().tolist() == [1, 0, 0, 1, 1, 0, 0, 0]  # two of 4, one of 2


def test_by_sign_of_a_layer_with_one_sign():
    assert magnitude_by_sign(state([-1.0, -3.0, -2.0], [1, 1, 1]), 2, None).int().tolist() == [1, 0, 1]


def test_magnitude_and_gradient_by_hand():
    layer = LayerState(
        "layer", torch.tensor([1.0, 2.0, 3.0]), torch.ones(3).bool(), None, torch.tensor([-30.0, 1.0, 0.0])
    )
    assert MagnitudeAndGradient(0.1)(layer, 1).int().tolist() == [0, 1, 0]  # 4, 2.1, 3
    with pytest.raises(CycleError, match="no gradient for 'bare'"):
        MagnitudeAndGradient()(LayerState("bare", torch.ones(2), torch.ones(2).bool()), 1)


def test_global_magnitude_leaves_every_layer_one():
    small, large = state([0.1, 0.2, 0.3], [1, 1, 1]), state([5.0, 0.25, 7.0], [1, 1, 1])
    chosen = PRUNE["global_magnitude"]([small, large], [2, 1], UpdateContext())
    assert [one.int().tolist() for one in chosen] == [[1, 1, 0], [0, 1, 0]]
    chosen = PRUNE["global_magnitude"]([small, large], [3, 3], UpdateContext())
    assert [one.int().tolist() for one in chosen] == [[1, 1, 0], [1, 1, 0]]


def test_the_threshold_follows_what_it_removed():
    layers = [state([0.5, 0.7, 3.0, 4.0], [1, 1, 1, 1]), state([0.2, 0.3], [1, 1])]
    prune, context = AdaptiveThreshold(wanted=3, start=1.0), UpdateContext()
    chosen = prune(layers, [0, 0], context)
    assert [one.int().tolist() for one in chosen] == [[1, 1, 0, 0], [1, 0]]  # 0.3 is the last of its layer
    assert context.notes["threshold"] == 1.0
    AdaptiveThreshold(wanted=2, start=1.0)(layers, [0, 0], context)
    assert context.notes["threshold"] == 0.5  # 3 > 1.1 * 2
    AdaptiveThreshold(wanted=0.9)(layers, [0, 0], context)
    assert context.notes["threshold"] == 1.0  # 1 < 0.9 * 0.9 * 6


def test_sign_flips():
    layer = LayerState(
        "layer",
        torch.tensor([1.0, -1.0, 0.0, -1.0, 0.0]),
        torch.tensor([1, 1, 1, 1, 0]).bool(),
        sign=torch.tensor([1, 1, 1, -1, 1], dtype=torch.int8),
    )
    assert PRUNE["sign_flip"]([layer], [0], UpdateContext())[0].int().tolist() == [0, 1, 0, 0, 0]
    with pytest.raises(CycleError, match="'layer' has no signs"):
        PRUNE["sign_flip"]([state([1.0], [1])], [0], UpdateContext())
