"""One whole cycle: conservation, the worked example, degenerate cases, custom parts."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import layer_state, sized_layer
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle import GROW, PRUNE, REDISTRIBUTE, CycleRecord, LayerState, PruneAndRegrow, UpdateContext
from sparsefx.errors import CycleError


def cycle(layers, rate=0.5, prune="magnitude", redistribute="momentum", grow="momentum", seed=0):
    update = PruneAndRegrow(
        PRUNE.get(prune, prune), REDISTRIBUTE.get(redistribute, redistribute), GROW.get(grow, grow)
    )
    return update(layers, UpdateContext(rate, 0.0, torch.Generator().manual_seed(seed)))


def random_layers(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    layers = []
    for index in range(draw(1, 8)):
        shape = [(draw(1, 9), draw(1, 9)), (draw(1, 5), draw(1, 5), 3, 3)][draw(0, 2)]
        size = math.prod(shape)
        active = [0, size, draw(0, size + 1), draw(0, size + 1)][draw(0, 4)]
        scale = [0.0, 1.0, 1e-30, 100.0][draw(0, 4)]
        layers.append(layer_state(shape, active, draw(0, 10**6), f"layer{index}", scale))
    return layers, draw(0, 101) / 100


@pytest.mark.parametrize("seed", range(200))
def test_conserves_counts_on_random_layers(seed):
    layers, rate = random_layers(seed)
    redistribute = sorted(REDISTRIBUTE)[seed % len(REDISTRIBUTE)]
    grows = sorted(GROW.keys() - {"random_unexplored"})  # nobody keeps count of what was active here
    grow = grows[seed // len(REDISTRIBUTE) % len(grows)]
    outcomes = cycle(layers, rate, redistribute=redistribute, grow=grow)
    assert sum(int(o.mask.sum()) for o in outcomes) == sum(layer.active for layer in layers)
    for layer, outcome in zip(layers, outcomes, strict=True):
        record = outcome.record
        assert outcome.mask.dtype == torch.bool
        assert outcome.mask.shape == layer.mask.shape
        assert int(outcome.mask.sum()) == record.active == layer.active - record.pruned + record.grown
        assert 0 <= record.active <= record.numel == layer.numel
        assert record.density == record.active / record.numel
        assert record.pruned <= math.ceil(rate * layer.active)
        assert int(outcome.grown.sum()) == record.grown
        assert not (outcome.grown & ~outcome.mask).any()
        assert not (outcome.mask & ~outcome.grown & ~layer.mask).any()
    if any(o.record.pruned for o in outcomes):
        assert sum(o.record.share for o in outcomes) == pytest.approx(1)


def test_worked_example():
    layers = [sized_layer(100, 10, 0.1, "a"), sized_layer(50, 10, 0.3, "b"), sized_layer(10, 9, 0.6, "c")]
    records = [outcome.record for outcome in cycle(layers)]
    assert [record.pruned for record in records] == [5, 5, 1]
    assert [record.grown for record in records] == [3, 6, 2]
    assert [record.active for record in records] == [8, 11, 10]
    assert [record.share for record in records] == pytest.approx([0.1, 0.3, 0.6])


def test_masks_by_hand():
    layer = LayerState(
        "layer",
        torch.tensor([4.0, -1.0, 2.0, 0.0, 0.0, 0.0]),
        torch.tensor([1, 1, 1, 0, 0, 0]).bool(),
        torch.tensor([0.0, 5.0, 0.0, 1.0, 1.0, 0.0]),
    )
    outcome = cycle([layer], rate=2 / 3)[0]  # loses -1 and 2; regrows -1's place, then a tie
    assert outcome.mask.int().tolist() == [1, 1, 0, 1, 0, 0]
    assert outcome.grown.int().tolist() == [0, 1, 0, 1, 0, 0]


def test_a_dense_growing_layer_is_not_pruned_and_a_dense_shrinking_one_is():
    growing = cycle([sized_layer(10, 10, 5.0, "dense"), sized_layer(10, 4, 1.0, "sparse")])
    assert [o.record.pruned for o in growing] == [0, 2]
    shrinking = cycle([sized_layer(10, 10, 1.0, "dense"), sized_layer(10, 4, 5.0, "sparse")])
    assert [o.record.pruned for o in shrinking] == [5, 2]


def test_an_equal_share_is_not_a_growing_one():
    layers = [sized_layer(10, 9, 0.1, name) for name in "abc"]
    assert [o.record.pruned for o in cycle(layers)] == [5, 5, 5]


def test_a_network_without_room_is_left_alone():
    layers = [sized_layer(10, 10, size, name) for size, name in ((0.1, "a"), (0.3, "b"))]
    assert [o.record.pruned for o in cycle(layers)] == [0, 0]


def test_the_prune_count_is_a_ceiling_without_rounding_error():
    assert cycle([sized_layer(100, 10, 1.0, "a")], rate=0.1)[0].record.pruned == 1
    assert cycle([sized_layer(100, 10, 1.0, "a")], rate=0.11)[0].record.pruned == 2
    assert cycle([sized_layer(1000, 100, 1.0, "a")], rate=0.29)[0].record.pruned == 29  # 28.999999999999996
    assert cycle([sized_layer(1000, 100, 1.0, "a")], rate=0.07)[0].record.pruned == 7  # 7.000000000000001


def test_rate_zero_changes_nothing_and_needs_no_statistic():
    bare = LayerState("bare", torch.ones(2, 3), torch.tensor([[1, 0, 1], [0, 0, 1]]).bool())
    outcome = cycle([bare], rate=0.0, grow="random")[0]
    assert torch.equal(outcome.mask, bare.mask)
    assert outcome.record.pruned == outcome.record.grown == 0


@pytest.mark.parametrize("statistic", [0.0, math.inf, math.nan])
def test_without_a_usable_statistic_every_layer_regrows_its_own(statistic):
    layers = [layer_state((5, 4), 8, 1, "a"), layer_state((5, 4), 12, 2, "b")]
    outcomes = cycle(layers, redistribute=lambda layers: [statistic] * len(layers))
    assert [o.record.pruned for o in outcomes] == [o.record.grown for o in outcomes] == [4, 6]
    assert [o.record.share for o in outcomes] == pytest.approx([0.4, 0.6])


def test_none_keeps_every_layer_count():
    layers = [layer_state((5, 4), 8, 1, "a"), layer_state((5, 4), 20, 2, "b"), layer_state((5, 4), 0, 3, "c")]
    assert [o.record.active for o in cycle(layers, redistribute="none")] == [8, 20, 0]


def test_no_layers_and_empty_layers():
    assert cycle([]) == []
    empty = LayerState("empty", torch.zeros(0, 3), torch.zeros(0, 3).bool(), torch.zeros(0, 3))
    assert cycle([empty])[0].record.density == 0


@properties(40)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-20, 20))
def test_scaling_all_momenta_changes_nothing(seed, exponent):
    layers = [layer_state((6, 5), 10 + i, seed + i, f"{i}") for i in range(3)]
    scaled = [
        LayerState(layer.name, layer.weight, layer.mask, layer.momentum * 2.0**exponent) for layer in layers
    ]
    for one, other in zip(cycle(layers), cycle(scaled), strict=True):
        assert torch.equal(one.mask, other.mask)


@properties(40)
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_permuting_layers_permutes_outcomes(seed, order):
    layers = [layer_state((7, 5), 5 + 4 * i, seed + i, f"{i}") for i in range(4)]
    straight = cycle(layers)
    for outcome, index in zip(cycle([layers[i] for i in order]), order, strict=True):
        assert outcome.record == straight[index].record
        assert torch.equal(outcome.mask, straight[index].mask)


def test_the_layers_are_left_as_they_are():
    layers = [layer_state((6, 5), 12, 0)]
    before = [layers[0].weight.clone(), layers[0].mask.clone(), layers[0].momentum.clone()]
    cycle(layers)
    assert all(map(torch.equal, before, (layers[0].weight, layers[0].mask, layers[0].momentum)))


def test_the_same_generator_gives_the_same_cycle():
    layers = [layer_state((20, 20), 100, i, f"{i}") for i in range(2)]
    first, second, other = (cycle(layers, grow="random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a.mask, b.mask) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("role", "returned", "message"),
    [
        (
            "prune",
            lambda mask: mask.float(),
            r"prune 'mine' on layer 'fc' must return a bool .* not torch.float32",
        ),
        ("prune", lambda mask: mask.flatten(), r"prune 'mine' on layer 'fc' must return .* shape \(6, 5\)"),
        ("prune", lambda mask: None, r"prune 'mine' on layer 'fc' must return .* not NoneType"),
        ("prune", lambda mask: ~mask, "prune 'mine' on layer 'fc' chose positions that are not active"),
        ("prune", lambda mask: mask, "prune 'mine' on layer 'fc' chose 12 positions instead of 6"),
        ("grow", lambda mask: mask, "grow 'mine' on layer 'fc' chose positions that are not inactive"),
        ("grow", lambda mask: ~mask, "grow 'mine' on layer 'fc' chose 24 positions instead of 6"),
    ],
)
def test_custom_choices_are_held_to_their_contract(role, returned, message):
    def mine(layer, count, generator):
        return returned(layer.mask)

    with pytest.raises(CycleError, match=message):
        cycle([layer_state((6, 5), 12, 0, "fc")], **{role: mine})


def test_too_few_candidates_are_told_with_the_remedy():
    def among_the_inactive(layer, count, generator):
        return layer.select_largest(layer.weight, ~layer.mask, count)

    with pytest.raises(CycleError, match=r"2 candidates for 14 positions; what prunes .* layer\.mask"):
        cycle([layer_state((6, 5), 28, 0, "fc")], prune=among_the_inactive)


@pytest.mark.parametrize("returned", [[1.0], [1.0, -1.0]])
def test_custom_statistics_are_held_to_their_contract(returned):
    def mine(layers):
        return returned

    with pytest.raises(CycleError, match=r"redistribute 'mine' returned .* one nonnegative number a layer"):
        cycle([layer_state((6, 5), 12, i) for i in range(2)], redistribute=mine)


def test_records_survive_plain_data():
    records = tuple(outcome.record for outcome in cycle([layer_state((6, 5), 12, 0)]))
    record = CycleRecord(1, 10, 0.5, records)
    assert CycleRecord.from_plain(record.to_plain()) == record
