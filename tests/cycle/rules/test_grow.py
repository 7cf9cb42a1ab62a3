"""Growth: exact counts, never an active position, ties, zero momentum, quotas."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import layer_state
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle import GROW, LayerState, UpdateContext
from sparsefx.cycle.rules.grow import gradient, momentum, momentum_neuron, random
from sparsefx.errors import CycleError


def state(mask, scores):
    values = torch.tensor(scores)
    return LayerState("layer", torch.zeros_like(values), torch.tensor(mask).bool(), values, values)


@pytest.mark.parametrize("grow", [momentum, gradient])
@pytest.mark.parametrize(
    ("mask", "scores", "count", "expected"),
    [
        ([0, 0, 0, 1], [1.0, -3.0, 2.0, 9.0], 2, [0, 1, 1, 0]),
        ([0, 1, 0, 0], [0.0, 0.0, 0.0, 0.0], 2, [1, 0, 1, 0]),  # no momentum: lowest inactive index
        ([1, 0, 0, 0], [5.0, 1.0, -1.0, 1.0], 2, [0, 1, 1, 0]),  # a tie
        ([1, 1], [1.0, 1.0], 0, [0, 0]),
    ],
)
def test_largest_by_hand(grow, mask, scores, count, expected):
    assert grow(state(mask, scores), count, None).int().tolist() == expected


@pytest.mark.parametrize("name", sorted(GROW.keys() - {"global_momentum"}))
@properties(60)
@given(
    shape=st.sampled_from([(3, 5), (1, 1), (4, 3, 2, 2), (6, 1)]),
    scale=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**20),
    data=st.data(),
)
def test_exactly_count_inactive_positions(name, shape, scale, seed, data):
    active = data.draw(st.integers(0, torch.Size(shape).numel()))
    layer = replace(layer_state(shape, active, seed, scale=scale), explored=torch.zeros(shape).bool())
    count = data.draw(st.integers(0, layer.free))
    grown = GROW[name](layer, count, torch.Generator().manual_seed(seed))
    assert grown.dtype == torch.bool
    assert grown.shape == layer.mask.shape
    assert int(grown.sum()) == count
    assert not (grown & layer.mask).any()


@pytest.mark.parametrize(("name", "scores"), [("momentum", "momentum"), ("gradient", "gradient")])
@properties(30)
@given(seed=st.integers(0, 2**20))
def test_grown_scores_are_the_largest(name, scores, seed):
    layer = layer_state((6, 7), 12, seed)
    grown = GROW[name](layer, 9, None)
    left = ~layer.mask & ~grown
    values = getattr(layer, scores).abs()
    assert values[grown].min() >= values[left].max()


def test_random_is_uniform_without_replacement_and_seeded():
    layer = state([1, 0, 0, 0, 0], [0.0] * 5)
    generator = torch.Generator().manual_seed(0)
    counts = sum(random(layer, 2, generator).int() for _ in range(2000))
    assert counts[0] == 0
    assert counts.sum() == 4000
    assert (counts[1:] - 1000).abs().max() < 120  # over 5 standard deviations
    again = [random(layer, 2, torch.Generator().manual_seed(7)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_neurons_share_by_mean_momentum():
    layer = state([[0, 0, 0, 0], [0, 0, 0, 0]], [[3.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    grown = momentum_neuron(layer, 4, None)  # means 1.5 and 0.5: quotas 3 and 1
    assert grown.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_a_full_neuron_passes_its_quota_on():
    layer = state([[1, 1, 0], [0, 0, 0]], [[9.0, 9.0, 9.0], [0.1, 0.2, 0.3]])
    assert momentum_neuron(layer, 3, None).int().tolist() == [[0, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize(
    ("grow", "message"),
    [
        (momentum, r"no momentum for 'bare'; call cycle\(\) after at least one step\(\)"),
        (momentum_neuron, r"no momentum for 'bare'; call cycle\(\) after at least one step\(\)"),
        (gradient, r"no gradient for 'bare'; call cycle\(\) after step\(\) and before zero_grad\(\)"),
    ],
)
def test_what_is_missing_is_named(grow, message):
    bare = LayerState("bare", torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(CycleError, match=message):
        grow(bare, 1, None)


def test_fresh_places_come_first():
    removed = torch.tensor([1, 1, 0, 0, 0]).bool()
    layer = LayerState("layer", torch.zeros(5), torch.tensor([0, 0, 0, 0, 1]).bool(), removed=removed)
    grow = GROW["random_fresh"]
    assert grow(layer, 2, torch.Generator()).int().tolist() == [0, 0, 1, 1, 0]
    assert int(grow(layer, 3, torch.Generator())[:2].sum()) == 1


def test_unexplored_places_come_first():
    explored = torch.tensor([1, 1, 0, 0, 1]).bool()
    layer = LayerState("layer", torch.zeros(5), torch.tensor([0, 0, 0, 0, 1]).bool(), explored=explored)
    grow = GROW["random_unexplored"]
    assert grow(layer, 2, torch.Generator()).int().tolist() == [0, 0, 1, 1, 0]
    assert int(grow(layer, 3, torch.Generator())[:2].sum()) == 1
    with pytest.raises(CycleError, match="explores=True"):
        grow(LayerState("layer", torch.zeros(2), torch.zeros(2).bool()), 1)


def test_global_momentum_follows_the_largest_wherever_they_are():
    one = LayerState("a", torch.zeros(3), torch.tensor([1, 0, 0]).bool(), torch.tensor([9.0, 1.0, 2.0]))
    other = LayerState("b", torch.zeros(2), torch.zeros(2).bool(), torch.tensor([-3.0, 2.5]))
    grown = GROW["global_momentum"]([one, other], [2, 0], UpdateContext())
    assert [part.int().tolist() for part in grown] == [[0, 0, 0], [1, 1]]


@pytest.mark.parametrize(("free", "count"), [(8, 2), (8, 6), (3, 1)])
def test_every_set_of_places_is_as_likely(free, count):
    """Few of many and many of few are drawn differently."""
    mask = torch.arange(10) >= free
    layer = LayerState("layer", torch.zeros(10), mask)
    generator = torch.Generator().manual_seed(0)
    sets = Counter(tuple(random(layer, count, generator).nonzero().flatten().tolist()) for _ in range(2000))
    expected = 2000 / math.comb(free, count)
    assert len(sets) == math.comb(free, count)
    deviations = sum((seen - expected) ** 2 / expected for seen in sets.values())  # chi squared
    assert deviations < len(sets) + 5 * (2 * len(sets)) ** 0.5
