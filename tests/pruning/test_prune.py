"""Pruning by score: exact counts, nested masks, scopes, rounds, compensation, Han's threshold."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import mask_layers, masked_conv_net, masked_mlp, total_active
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, nn

import sparsefx
from sparsefx._common.distributions import active_counts
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import check_invariant, masked_weights
from sparsefx.pruning.prune import prune, prune_below
from sparsefx.scores import SCORES, ScoringContext


def net(*rows: list[list[float]]) -> nn.Sequential:
    """Linear layers with these weights, all active."""
    model = nn.Sequential(*(nn.Linear(len(row[0]), len(row), bias=False) for row in rows))
    for layer, row in zip(model, rows, strict=True):
        layer.weight.data = torch.tensor(row)
    return mask_layers(model, density=1)


def fixed(model: nn.Module, *rows: list[list[float]]):
    names = [masked.name for masked in masked_weights(model)]
    table = dict(zip(names, (torch.tensor(row) for row in rows), strict=True))

    def mine(context: ScoringContext) -> dict[str, Tensor]:
        return table

    return mine


def masks(model: nn.Module) -> list[list[list[int]]]:
    return [masked.mask.int().tolist() for masked in masked_weights(model)]


def numel(model: nn.Module) -> int:
    return sum(masked.mask.numel() for masked in masked_weights(model))


@pytest.mark.parametrize(
    ("density", "scope", "min_active", "expected"),
    [
        (4 / 6, "global", 0, [[[0, 1], [1, 0]], [[1, 1]]]),  # ties at 1: the lowest index goes first
        (3 / 6, "global", 0, [[[0, 1], [0, 0]], [[1, 1]]]),
        (3 / 6, "layer", 0, [[[0, 1], [1, 0]], [[0, 1]]]),
        (1 / 6, "global", 0, [[[0, 0], [0, 0]], [[0, 1]]]),
        (2 / 6, "global", 1, [[[0, 1], [0, 0]], [[0, 1]]]),
        (3 / 6, "global", 2, None),
        (1.0, "global", 0, [[[1, 1], [1, 1]], [[1, 1]]]),
    ],
)
@pytest.mark.filterwarnings("ignore:pruning left no weight in 0")
def test_masks_by_hand(density, scope, min_active, expected):
    model = net([[1.0, -2.0], [-1.0, 0.0]], [[2.0, 3.0]])
    if expected is None:
        with pytest.raises(ArgumentError, match="min_active=2 asks 4 weights of 0, 1, where"):
            prune(model, density, scope=scope, min_active=min_active)
        return
    kept = prune(model, density, scope=scope, min_active=min_active)
    assert masks(model) == expected
    assert kept == {name: sum(map(sum, mask)) for name, mask in zip("01", expected, strict=True)}


def test_equal_scores_go_in_order():
    model = net([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]])
    prune(model, 3 / 6)
    assert masks(model) == [[[0, 0], [0, 1]], [[1, 1]]]


@properties(50)
@given(
    start=st.floats(0.3, 1),
    part=st.floats(0.05, 1),
    scope=st.sampled_from(["global", "layer"]),
    score=st.sampled_from(["magnitude", "random"]),
    rounds=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
@pytest.mark.filterwarnings("ignore:pruning left no weight")
def test_the_count_is_exact_and_masks_are_nested(start, part, scope, score, rounds, seed):
    model = masked_mlp(7, 9, 5, density=start, seed=seed)
    layers = masked_weights(model)
    density = part * total_active(model) / numel(model)
    before = [(layer.mask.clone(), layer.weight.detach().clone()) for layer in layers]
    bias = model[0].bias.clone()
    generator = torch.Generator().manual_seed(seed)
    kept = prune(model, density, score=score, scope=scope, rounds=rounds, generator=generator)
    assert sum(kept.values()) == total_active(model) == round(density * numel(model))
    for layer, (mask, weight) in zip(layers, before, strict=True):
        assert not (layer.mask & ~mask).any()
        assert torch.equal(layer.weight, weight * layer.mask)
    assert torch.equal(model[0].bias, bias)


@properties(20)
@given(st.integers(0, 2**16), st.integers(1, 4), st.floats(0.2, 0.9))
def test_every_layer_keeps_its_best(seed, min_active, density):
    model = masked_conv_net(density=1, seed=seed)
    layers = masked_weights(model)
    values = [layer.weight.detach().abs() for layer in layers]
    prune(model, density, min_active=min_active)
    removed = torch.cat([value[~layer.mask] for layer, value in zip(layers, values, strict=True)])
    kept = torch.cat([value[layer.mask] for layer, value in zip(layers, values, strict=True)])
    assert kept.min() >= removed.max()
    assert all(int(layer.mask.sum()) >= min_active for layer in layers)


@pytest.mark.parametrize("name", sorted(SCORES))
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_every_score_prunes_to_masks_that_export_takes(name, scope):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    model = sparsefx.sparsify(plain, density=1.0)
    batches = [(torch.randn(8, 2, 4, 4), torch.arange(8) % 3) for _ in range(2)]
    kept = prune(
        torch.compile(model, backend="eager"),
        0.2,
        score=name,
        scope=scope,
        batches=batches,
        min_active=1,
        generator=torch.Generator().manual_seed(0),
    )
    assert sum(kept.values()) == round(0.2 * (108 + 120 + 15))
    check_invariant(model)
    x = batches[0][0]
    small = sparsefx.export(model, (x,))
    torch.testing.assert_close(small(x), model.eval()(x))


def test_layers_keep_what_the_distribution_says():
    model = masked_mlp(20, 30, 10, 5, density=1)
    shapes = [layer.mask.shape for layer in masked_weights(model)]
    assert list(prune(model, 0.3, scope="layer", distribution="erk").values()) == active_counts(
        shapes, 0.3, "erk"
    )
    assert list(prune(model, 0.1, scope="layer").values()) == [60, 30, 5]


def test_a_layer_that_has_less_than_its_share_keeps_all_and_the_others_take_the_rest():
    model = net([[1.0] * 10], [[1.0] * 10], [[1.0] * 10])
    masked_weights(model)[0].set_mask(torch.arange(10)[None] < 2)
    assert prune(model, 0.5, scope="layer") == {"0": 2, "1": 7, "2": 6}


def test_a_lottery_ticket_is_a_distribution_of_its_own():
    model = masked_mlp(10, 10, 10, density=1)
    for done in (1, 2):
        prune(model, 0.8**done, scope="layer", distribution=lambda shapes, density, k=done: [0.8**k, 0.9**k])
    assert [int(layer.mask.sum()) for layer in masked_weights(model)] == [64, 81]


def test_rounds_fall_exponentially_and_score_what_is_left():
    model = net([[float(i) for i in range(1, 101)]])
    seen = []

    def mine(context: ScoringContext) -> dict[str, Tensor]:
        seen.append(total_active(context.model))
        return SCORES["magnitude"](context)

    prune(model, 0.64)
    prune(model, 0.01, score=mine, rounds=3)
    assert seen == [64, 16, 4]
    assert masks(model) == [[[0] * 99 + [1]]]


def test_a_score_may_change_its_mind_between_rounds():
    model = net([[1.0, 2.0, 3.0, 4.0]])

    def mine(context: ScoringContext) -> dict[str, Tensor]:
        weight = context.model[0].weight.detach()
        return {"0": weight if bool(weight.all()) else -weight}

    prune(model, 0.25, score=mine, rounds=2)  # first the smaller half goes, then the largest
    assert masks(model) == [[[0, 0, 1, 0]]]


def test_scores_of_different_dtypes_compete():
    model = net([[1.0, 1.0]], [[1.0], [1.0]])
    low, high = fixed(model, [[1.0, 5.0]], [[2.0], [3.0]])(None).values()
    prune(model, 0.5, score=lambda context: {"0": low.half(), "1": high.double()})
    assert masks(model) == [[[0, 1]], [[0], [1]]]


def test_the_surgeon_in_small_steps_beats_magnitude_and_compensation_helps_both():
    torch.manual_seed(0)
    mixed = torch.randn(200, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    plain = nn.Sequential(nn.Linear(8, 6)).double()
    errors, counts = [], []
    for score, compensate, rounds in [
        ("magnitude", False, 1),
        ("magnitude", True, 1),
        ("layerwise_obs", False, 24),
        ("layerwise_obs", True, 24),
    ]:
        model = sparsefx.sparsify(plain, density=1.0)
        batches = [(mixed, None)]
        kept = prune(model, 0.5, score=score, batches=batches, compensate=compensate, rounds=rounds)
        counts.append(kept)
        check_invariant(model)
        assert torch.equal(model.get_parameter("0.bias"), plain[0].bias)
        errors.append(float((model(mixed) - plain(mixed)).detach().square().mean()))
    magnitude, compensated, alone, surgeon = errors
    assert surgeon < compensated < magnitude
    assert surgeon < alone
    assert all(sum(count.values()) == 24 for count in counts)


def test_an_emptied_layer_is_warned_of_once():
    model = net([[1.0, 1.0]], [[9.0, 9.0]])
    with pytest.warns(UserWarning, match="pruning left no weight in 0; min_active keeps some"):
        prune(model, 0.5)
    prune(model, 0.25)  # it was empty before


def test_han_prunes_below_a_multiple_of_the_standard_deviation():
    model = net([[1.0, -1.0, 3.0, -3.0]], [[2.0], [-0.1]])
    masked_weights(model)[1].set_mask(torch.tensor([[True], [False]]))
    assert prune_below(model, {"0": 1.0}) == {"0": 2, "1": 1}  # std is sqrt(5) = 2.236
    assert masks(model) == [[[0, 0, 1, 1]], [[1], [0]]]
    assert prune_below(model, 0.9) == {"0": 2, "1": 1}  # now std is 3; the second layer has one weight: 0
    with pytest.warns(UserWarning, match="pruning left no weight in 0"):
        prune_below(model, 1.1)
    assert prune_below(model, 1.0) == {"0": 0, "1": 1}


def test_han_at_zero_keeps_all():
    model = masked_mlp(6, 5, 4, density=0.5)
    before = masks(model)
    prune_below(model, 0.0)
    assert masks(model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"density": 0.9},
            "density=0.9 keeps 32 weights, but only 18 of 35 are active; pruning only",
        ),
        ({"density": 0}, r"density=0 is outside \(0, 1\]"),
        ({"density": math.nan}, r"density=nan is outside \(0, 1\]"),
        ({"score": "snap"}, "score='snap' is not known; did you mean 'snip'"),
        ({"score": "snip"}, "batches is empty and this score needs data"),
        ({"scope": "local"}, "scope='local' is not known"),
        ({"distribution": "erk"}, "distribution='erk' is for scope='layer'"),
        ({"rounds": 0}, "rounds=0 is not a whole number of at least 1"),
        ({"min_active": -1}, "min_active=-1 is not a whole number of at least 0"),
        ({"compensate": True}, "batches is empty"),
        (
            {"scope": "layer", "distribution": lambda s, d: [1.0]},
            "distribution=<.* keeps 35 weights",
        ),
        ({"score": lambda context: {}}, "score '<lambda>' returned nothing for layer '0'"),
        (
            {"score": lambda context: {"0": torch.ones(3)}},
            r"'<lambda>' returned shape \(3,\) for layer '0'",
        ),
        (
            {"score": lambda context: {"0": torch.full((5, 7), math.nan)}},
            "'<lambda>' is not finite for",
        ),
    ],
)
def test_what_cannot_be_done_is_said_and_not_begun(arguments, message):
    model = masked_mlp(7, 5, density=0.5)
    before = masks(model)
    with pytest.raises(ArgumentError, match=message):
        prune(model, **{"density": 0.1, **arguments})
    assert masks(model) == before


def test_a_weight_that_is_not_a_number_is_noticed():
    model = net([[1.0, math.nan]])
    with pytest.raises(ArgumentError, match="score 'magnitude' is not finite for layer '0'; look for NaN"):
        prune(model, 0.5)


def test_a_model_without_masks():
    for shrink in (prune, prune_below):
        with pytest.raises(ArgumentError, match=r"no masked weights; make some with sparsify\(model"):
            shrink(nn.Linear(2, 2), 0.5)


def test_qualities_are_checked():
    model = masked_mlp(4, 4)
    with pytest.raises(ArgumentError, match="quality='1' is not known"):
        prune_below(model, {"1": 1.0})
    with pytest.raises(ArgumentError, match=r"quality=-1\.0 for '0' is negative"):
        prune_below(model, -1.0)


@pytest.mark.parametrize("score", ["optimal_brain_damage", "layerwise_obs"])
def test_curvature_of_a_diverged_network(score):
    model, x = masked_mlp(4, 6, 3, density=1.0), torch.full((8, 4), math.inf)
    with pytest.raises(ArgumentError, match="singular or not finite, as where training has diverged"):
        prune(model, 0.5, score=score, batches=[(x, torch.zeros(8, dtype=torch.int64))])
