"""What is pruned: exact counts, ties, zeros, NaN, signs, thresholds, all layers together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import layer_state
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle import (
    GROW,
    PRUNE,
    REDISTRIBUTE,
    AdaptiveThreshold,
    ForAllLayers,
    LayerState,
    MagnitudeAndGradient,
    PruneAndRegrow,
    UpdateContext,
)
from sparsefx.cycle.rules.prune import magnitude, magnitude_by_sign, magnitude_times_momentum
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


@pytest.mark.parametrize(
    ("weight", "momentum", "mask", "count", "expected"),
    [
        ([3.0, -1.0, 2.0, 5.0], [0.5, 1.0, -2.0, 0.1], [1, 1, 1, 1], 2, [0, 1, 0, 1]),  # 1.5, 1, 4, 0.5
        ([1.0, -2.0, 4.0, 8.0], [4.0, 2.0, -1.0, 0.5], [1, 1, 1, 1], 3, [1, 1, 1, 0]),  # all 4: lowest index
        ([5.0, 2.0, -1.0, 1.0], [1.0, 1.0, 2.0, 1.0], [1, 1, 1, 1], 2, [0, 1, 0, 1]),  # a tie at 2
        ([0.0, 9.0, 0.0, 1.0], [9.0, 0.0, 0.0, 1.0], [0, 1, 0, 1], 1, [0, 1, 0, 0]),  # 0: nothing pulls at it
        ([float("nan"), float("inf"), 1.0], [0.0, 0.0, 1.0], [1, 1, 1], 1, [0, 0, 1]),  # not finite: largest
    ],
)
def test_magnitude_times_momentum_by_hand(weight, momentum, mask, count, expected):
    layer = replace(state(weight, mask), momentum=torch.tensor(momentum))
    assert magnitude_times_momentum(layer, count).int().tolist() == expected


def test_magnitude_times_momentum_needs_a_momentum():
    with pytest.raises(CycleError, match="no momentum for 'layer'"):
        magnitude_times_momentum(state([1.0], [1]), 1)


@pytest.mark.parametrize("name", sorted(PRUNE))
def test_every_rule_removes_as_many_active_weights_as_it_is_told(name):
    layers = [
        replace(layer_state((4, 5), 12, seed), sign=torch.ones(4, 5, dtype=torch.int8)) for seed in (1, 2)
    ]
    counts = [3, 5]
    if isinstance(PRUNE[name], ForAllLayers):
        chosen = PRUNE[name](layers, counts, UpdateContext())
    else:
        chosen = [PRUNE[name](layer, count, None) for layer, count in zip(layers, counts, strict=True)]
        assert [int(one.sum()) for one in chosen] == counts
    for layer, one in zip(layers, chosen, strict=True):
        assert one.dtype == torch.bool
        assert one.shape == layer.mask.shape
        assert not (one & ~layer.mask).any()


@pytest.mark.parametrize("name", sorted(PRUNE))
def test_a_rule_that_works_without_momentum_says_so(name):
    """What ``reads_momentum`` denies is not kept for optimizers that have none."""
    update = PruneAndRegrow(PRUNE[name], REDISTRIBUTE["none"], GROW["random"])
    if not update.reads_momentum:
        layer = replace(layer_state((4, 5), 12, 1), momentum=None, sign=torch.ones(4, 5, dtype=torch.int8))
        update([layer], UpdateContext(0.5, 0.0, torch.Generator().manual_seed(0)))


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
