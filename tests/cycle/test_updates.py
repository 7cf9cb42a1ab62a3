"""Updates beside the cycle: gradual pruning, stored values, constant fan-in; updates in turn; timing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import layer_state
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.cycle import (
    DENSITIES,
    GROW,
    PRUNE,
    REDISTRIBUTE,
    Clock,
    ConstantFanIn,
    GradualPruning,
    Hysteresis,
    LayerOutcome,
    LayerState,
    PruneAndRegrow,
    Timing,
    UpdateContext,
    in_turn,
    positive,
)
from sparsefx.cycle.updates.constant_fan_in import constant_fan_in_mask
from sparsefx.errors import ArgumentError, CycleError


def full(values):
    weight = torch.tensor(values)
    return LayerState("full", weight, torch.ones_like(weight).bool())


def masks(outcomes):
    return [outcome.mask.int().tolist() for outcome in outcomes]


def test_the_cubic_schedule_by_hand():
    values = [1 - DENSITIES["cubic"](1.0, 0.1, progress) for progress in (0, 0.25, 0.5, 0.75, 1, 2)]
    assert values == pytest.approx([0, 0.5203125, 0.7875, 0.8859375, 0.9, 0.9])
    assert DENSITIES["geometric"](1.0, 0.01, 0.5) == pytest.approx(0.1)
    assert DENSITIES["at_once"](1.0, 0.01, 0.0) == 0.01


def test_thin_keeps_the_largest_of_each_layer_or_of_all():
    layers = [full([0.1, -0.2, 0.3, 0.4]), full([5.0, 6.0, -7.0, 8.0])]
    halfway = UpdateContext(progress=1.0)
    assert masks(GradualPruning(1.0, 0.5, DENSITIES["cubic"])(layers, halfway)) == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]
    everywhere = GradualPruning(1.0, 0.5, DENSITIES["cubic"], "global")
    assert masks(everywhere(layers, halfway)) == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_thin_never_brings_a_weight_back_unless_it_is_stored():
    layer = LayerState("layer", torch.tensor([0.0, 2.0, 3.0]), torch.tensor([0, 1, 1]).bool())
    gradual = GradualPruning(1.0, 1 / 3, DENSITIES["at_once"])
    assert masks(gradual([layer], UpdateContext())) == [[0, 0, 1]]
    assert masks(gradual([replace(layer, stored=torch.tensor([-9.0, 2.0, 3.0]))], UpdateContext())) == [
        [1, 0, 0]
    ]


@properties(50)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from(["layer", "global"]))
def test_thin_is_exact_and_nested(seed, final, scope):
    layers = [layer_state((4, 5), 20, seed, "a"), layer_state((3, 2, 2, 2), 24, seed + 1, "b")]
    gradual = GradualPruning(1.0, final, DENSITIES["cubic"], scope)
    before = 44
    for progress in (0.0, 0.3, 0.7, 1.0):
        outcomes = gradual(layers, UpdateContext(progress=progress))
        total = sum(int(outcome.mask.sum()) for outcome in outcomes)
        least = 2 if scope == "global" else 0
        assert total == max(least, round(DENSITIES["cubic"](1.0, final, progress) * 44))
        assert total <= before
        assert not any((o.mask & ~layer.mask).any() for o, layer in zip(outcomes, layers, strict=True))
        layers = [layer.with_mask(o.mask) for layer, o in zip(layers, outcomes, strict=True)]
        before = total


def test_hysteresis_leaves_the_band_alone_and_brings_back_what_is_above():
    stored = torch.tensor([0.5, 0.95, 0.95, 1.05, 1.2, 1.2])
    mask = torch.tensor([1, 1, 0, 0, 0, 1]).bool()
    layer = LayerState("layer", stored * mask, mask, stored=stored)
    assert masks(Hysteresis(0.5)([layer], UpdateContext())) == [
        [0, 1, 0, 0, 1, 1]
    ]  # 0.95 / 0.9 exceeds 1.05 / 1.1


def test_hysteresis_follows_weights_that_grow():
    stored = torch.tensor([1.0, 2.0, 3.0, 4.0])
    layer = LayerState("layer", stored, torch.ones(4).bool(), stored=stored)
    for factor in (1, 10):
        grown = replace(layer, stored=stored * factor)
        assert masks(Hysteresis(0.5)([grown], UpdateContext())) == [[0, 0, 1, 1]]
    assert masks(Hysteresis(0.0)([layer], UpdateContext())) == [[0, 0, 0, 0]]


@pytest.mark.parametrize(("distribution", "counts"), [("uniform", [2, 16]), ("erk", [5, 13])])
def test_hysteresis_divides_the_density_by_its_distribution(distribution, counts):
    layers = [
        LayerState(f"{shape}", stored, stored < 2**20, stored=stored)
        for shape in ((2, 4), (8, 8))
        for stored in [2.0 ** torch.arange(shape[0] * shape[1]).view(shape)]
    ]
    outcomes = Hysteresis(0.25, distribution)(layers, UpdateContext())
    assert [outcome.record.active for outcome in outcomes] == counts


def test_hysteresis_sets_published_thresholds_once():
    stored = torch.tensor([1.0, 2.0, 3.0, 4.0])
    layer = LayerState("layer", stored, torch.ones(4).bool(), stored=stored)
    context, level = UpdateContext(), 2.5 + 5**0.5 / 3**0.5
    for factor, mask in ((1, [0, 0, 0, 1]), (10, [1, 1, 1, 1])):
        layer = replace(layer, stored=stored * factor, mask=torch.ones(4).bool())
        assert masks(Hysteresis(0.5, deviations=1.0)([layer], context)) == [mask]
        assert context.notes["levels"] == pytest.approx({"layer": level})
    with pytest.raises(CycleError, match="has no number for layer 2"):
        Hysteresis(0.5, deviations=(1.0,))([layer, replace(layer, name="other")], UpdateContext())
    with pytest.raises(CycleError, match="keeps no inactive values"):
        Hysteresis(0.5)([replace(layer, stored=None)], UpdateContext())


def test_positive_by_hand():
    stored, sign = torch.tensor([1.0, -1.0, -2.0, 2.0]), torch.tensor([1, 1, -1, -1], dtype=torch.int8)
    layer = LayerState("layer", stored, torch.zeros(4).bool(), stored=stored, sign=sign)
    assert masks(positive([layer], UpdateContext())) == [[1, 0, 1, 0]]


def fan_in(seed, neurons, inputs, active):
    layer = layer_state((neurons, inputs), 0, seed)
    mask = constant_fan_in_mask(torch.Size((neurons, inputs)), active, torch.Generator().manual_seed(seed))
    weight = torch.randn(neurons, inputs, generator=torch.Generator().manual_seed(seed)) * mask
    return replace(layer, weight=weight, mask=mask)


@properties(80)
@given(
    st.integers(0, 10**6),
    st.integers(1, 8),
    st.integers(2, 12),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.3, 0.9]),
)
def test_fan_in_stays_constant(seed, neurons, inputs, rate, salient):
    active = torch.randint(neurons, neurons * inputs + 1, (), generator=torch.Generator().manual_seed(seed))
    layers = [fan_in(seed, neurons, inputs, int(active)), fan_in(seed + 1, neurons, inputs, int(active))]
    context = UpdateContext(rate)
    outcomes = ConstantFanIn(salient)(layers, context)
    for layer, outcome, is_last in zip(layers, outcomes, (False, True), strict=True):
        counts = outcome.mask.sum(1)
        alive = counts[counts > 0]
        assert len(alive) >= 1
        assert bool((alive == alive[0]).all())
        assert layer.active - len(alive) < int(counts.sum()) <= layer.active
        assert not is_last or len(alive) == neurons


def test_neurons_without_salient_weights_are_ablated():
    weight = torch.tensor([[9.0, 8.0, 0.0, 0.0], [0.1, 0.2, 0.0, 0.0], [7.0, 6.0, 0.0, 0.0]])
    gradient = torch.tensor([[0.0, 0.0, 5.0, 4.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    layer = LayerState("layer", weight, weight != 0, gradient=gradient)
    after = ConstantFanIn(0.5)([layer, layer], UpdateContext(1 / 3))[0].mask
    assert after.int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]]


def test_a_constant_fan_in_needs_one_input_each():
    with pytest.raises(ArgumentError, match="4 active weights for 5 neurons"):
        constant_fan_in_mask(torch.Size((5, 3)), 4)


def test_updates_in_turn_are_told_together():
    layer = layer_state((6, 6), 36, 3)
    regrow = PruneAndRegrow(PRUNE["magnitude"], REDISTRIBUTE["none"], GROW["gradient"])
    updates = (GradualPruning(1.0, 0.5, DENSITIES["at_once"]), regrow)
    (outcome,) = in_turn(updates, [layer], UpdateContext(rate=0.25))
    assert int(outcome.mask.sum()) == 18
    assert outcome.record.active == 18
    assert outcome.record.pruned - outcome.record.grown == 18
    assert bool(outcome.grown.any())  # pruned by the one, grown by the other
    with pytest.raises(CycleError, match="must return a list of one LayerOutcome"):
        in_turn((lambda layers, context: [],), [layer], UpdateContext())


def test_each_update_has_notes_of_its_own():
    def counting(layers, context):
        context.notes["calls"] = context.notes.get("calls", 0) + 1
        return [LayerOutcome.of(layer, layer.mask) for layer in layers]

    context = UpdateContext()
    for _ in range(2):
        in_turn([counting, counting], [layer_state((2, 2), 3, 0)], context)
    assert context.notes == {"counting": {"calls": 2}, "counting 2": {"calls": 2}}


def test_regrown_weights_may_keep_their_values():
    layer = layer_state((2, 2), 3, 0)
    regrow = PruneAndRegrow(
        PRUNE["magnitude"], REDISTRIBUTE["none"], GROW["gradient"], "floor", keeps_regrown=True
    )
    (outcome,) = regrow([layer], UpdateContext(rate=1.0))
    assert not (outcome.grown & layer.mask).any()
    assert int(outcome.mask.sum()) == 3
    assert outcome.record.grown == 3


def test_floor_and_ceiling():
    layer = layer_state((10, 10), 25, 0)
    for rounding, pruned in (("floor", 7), ("ceil", 8)):
        regrow = PruneAndRegrow(PRUNE["magnitude"], REDISTRIBUTE["none"], GROW["random"], rounding)
        assert regrow([layer], UpdateContext(rate=0.3))[0].record.pruned == pruned


def test_survivors_decide_after_pruning():
    layers = [layer_state((10, 10), 50, 0, "a"), layer_state((10, 10), 50, 1, "b")]
    layers[1] = replace(layers[1], weight=layers[1].weight * 100)
    regrow = PruneAndRegrow(PRUNE["global_magnitude"], REDISTRIBUTE["survivors"], GROW["random_fresh"])
    outcomes = regrow(layers, UpdateContext(0.5, generator=torch.Generator()))
    assert [o.record.pruned for o in outcomes] == [49, 1]
    assert [o.record.grown for o in outcomes] == [1, 49]


STEPS = [
    (Timing(), [10, 20, 30]),
    (Timing(epochs=2), [20]),
    (Timing(every=7), [7, 14, 21, 28, 35]),
    (Timing(every=10, last=0.5), [10]),
    (Timing(every=10, last=0.5, at_last=True), [10, 20]),
    (Timing(every=5, first=0.25, last=0.75), [10, 15, 20, 25]),
    (Timing(every=((0.0, 5), (0.5, 10))), [5, 10, 15, 20, 30]),
    (Timing(every=1, chance=lambda step: step == 3), [3]),
]


@pytest.mark.parametrize(("timing", "steps"), STEPS)
def test_when_updates_are_due(timing, steps):
    clock = Clock(timing, steps=40, epoch_steps=10)
    assert [step for step in range(1, 41) if clock.is_due(step, torch.Generator())] == steps


def test_progress():
    clock = Clock(Timing(every=10, last=0.75), steps=100, epoch_steps=10)
    assert [clock.progress(step) for step in (0, 30, 75, 90)] == pytest.approx([0, 0.4, 1, 1])
    clock = Clock(Timing(every=10, first=0.1, last=0.75, at_last=True), steps=100, epoch_steps=10)
    assert [clock.progress(step) for step in (5, 10, 40, 70, 75)] == pytest.approx([0, 0, 0.5, 1, 1])
    uneven = Timing(every=((0.0, 10), (0.6, 70)), last=0.65, at_last=True)  # the last one is at 50
    assert [Clock(uneven, 100, 10).progress(step) for step in (10, 30, 50)] == pytest.approx([0.2, 0.6, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": 0.5, "last": 0.4}, "first=0.5 and last=0.4"),
        ({"every": 0}, "every=0, epochs=1: 0 is neither"),
        ({"every": 2.5}, "2.5 is neither 'epoch' nor a whole number"),
        ({"epochs": 0}, "0 is neither"),
        ({"every": ()}, "must begin at 0 and ascend"),
        ({"every": ((0.5, 2),)}, "must begin at 0 and ascend"),
        ({"every": ((0.0, 0),)}, "0 is neither"),
        ({"last": "x"}, "first=0.0 and last='x'"),
        ({"every": "week"}, "every='week', epochs=1: 'week' is neither"),
    ],
)
def test_timings_that_cannot_be(options, message):
    with pytest.raises(ArgumentError, match=message):
        Timing(**options)
