"""What each method promises besides what all of them do; and the table itself."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from helpers import assert_same
from torch import nn
from torch.nn import functional as F

from sparsefx import METHODS, Rules, SparseOptimizer, Training, masked_weights, method, sparsify
from sparsefx._common.distributions import active_counts
from sparsefx.cycle import (
    Clock,
    ConstantFanIn,
    ExplorationPenalty,
    GradualPruning,
    Hysteresis,
    LayerState,
    PruneAndRegrow,
    RandomWalk,
    Timing,
    UpdateContext,
)
from sparsefx.cycle.updates.constant_fan_in import constant_fan_in_mask
from sparsefx.errors import ArgumentError, CheckpointError
from sparsefx.methods import Method, Rounds
from sparsefx.methods.options import options_of
from sparsefx.methods.parts import FirstMasks, Regrowth, Sparsity, Updates, WeightRules


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def sgd(parameters, lr=0.1, momentum=0.9):
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def plain_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def begin(name, make=sgd, steps=20, **changes):
    data = [(torch.randn(16, 12), torch.arange(16) % 4)]
    return Training(
        method(name, **{"density": 0.25, **changes}),
        net(),
        make,
        steps=steps,
        epoch_steps=5,
        batches=data,
        samples=80,
    )


def learn(training, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(training.optimizer.steps_done)
        x, y = torch.randn(16, 12, generator=generator), torch.randint(0, 4, (16,), generator=generator)
        training.optimizer.zero_grad()
        (F.cross_entropy(training.model(x), y) + training.penalty()).backward()
        training.optimizer.step()


def weights(model):
    return {m.name: (m.weight.detach().clone(), m.mask.clone(), m.weight.grad) for m in masked_weights(model)}


def test_rigl_replaces_the_step_and_grows_the_largest_gradients():
    training = begin("rigl", every=4)
    learn(training, 3)
    before = weights(training.model)
    learn(training, 1)
    for name, (weight, mask, gradient) in weights(training.model).items():
        old_weight, old_mask, _ = before[name]
        kept = mask & old_mask
        assert torch.equal(weight[kept], old_weight[kept])  # no SGD step was made
        grown = mask & ~old_mask
        assert bool(grown.any())
        assert not weight[grown].any()
        assert gradient[grown].abs().min() >= gradient[~mask].abs().max()
        parameter = training.model.get_parameter(f"{name}.weight")
        buffer = training.optimizer.state[parameter]["momentum_buffer"]
        assert not buffer[grown].any()
        assert bool(buffer[kept].any())


def test_growing_zeros_leaves_the_loss_alone():
    training = begin("sparse-momentum", prune=lambda layer, count, generator: torch.zeros_like(layer.mask))
    update = training.method.rules().updates[0]
    assert isinstance(update, PruneAndRegrow)
    learn(training, 3)
    x = torch.randn(8, 12)
    expected = training.model(x)
    for masked in masked_weights(training.model):
        grown = ~masked.mask
        masked.weight.data.masked_fill_(grown, 0)
        masked.set_mask(masked.mask | grown)
    assert torch.equal(training.model(x), expected)


def test_set_gives_new_weights_the_spread_of_the_first_ones():
    training = begin("set", every=5)
    spreads = {m.name: float(m.weight.detach()[m.mask].std()) for m in masked_weights(training.model)}
    learn(training, 4)
    before = weights(training.model)
    learn(training, 1)
    for name, (weight, mask, _) in weights(training.model).items():
        new = weight[mask & ~before[name][1]]
        assert bool((new != 0).all())
        assert float(new.abs().max()) < 5 * spreads[name]


def test_deep_r_never_lets_a_weight_cross_zero():
    training = begin("deep-r", make=plain_sgd)
    signs = {n: s.clone() for n, s in training.optimizer._auxiliary.tensors["sign"].items()}
    moved = False
    before = weights(training.model)
    for _ in range(20):
        learn(training, 1)
        for name, (weight, mask, _) in weights(training.model).items():
            assert not (weight * signs[name] < 0).any()
            assert bool((weight[mask] != 0).all())
            moved |= not torch.equal(mask, before[name][1])
    assert moved
    for name, sign in training.optimizer._auxiliary.tensors["sign"].items():
        assert torch.equal(sign, signs[name])


def test_the_random_walk_pulls_to_zero_and_stirs_only_what_is_active():
    mask, sign = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, -1, 1, -1], dtype=torch.int8)
    gradient = torch.tensor([9.0, 9.0, 5.0, -5.0])
    layer = LayerState("layer", torch.ones(4) * mask, mask, gradient=gradient, sign=sign)
    assert RandomWalk(l1=0.5, noise=0.0)(layer, UpdateContext()).tolist() == [0.5, -0.5, 0, 0]
    soft = RandomWalk(l1=0.5, noise=0.0, dormant=True)(layer, UpdateContext())
    assert (gradient + soft).tolist() == [9.5, 8.5, 0, 0]
    noisy = RandomWalk(l1=0.0, noise=1.0)(layer, UpdateContext(generator=torch.Generator()))
    assert bool((noisy[:2] != 0).all())
    assert not noisy[2:].any()


def test_soft_deep_r_keeps_dormant_weights_within_bounds():
    training = begin("soft-deep-r", make=plain_sgd, steps=30)
    learn(training, 30)
    auxiliary, least = training.optimizer._auxiliary, training.method.rules().least
    for name, (weight, mask, _) in weights(training.model).items():
        stored = auxiliary.tensors["stored"][name] * auxiliary.tensors["sign"][name]
        assert float(stored.min()) >= least * (1 + 1e-6)
        assert torch.equal(mask, stored > 0)
        assert torch.equal(weight, torch.where(mask, auxiliary.tensors["stored"][name], 0.0))


def test_surgery_lets_masked_weights_move_and_return():
    training = begin("dynamic-network-surgery", chance=None, last=1.0, steps=40)
    learn(training, 40)
    assert training.next_round()
    learn(training, 2)
    before = {n: t.clone() for n, t in training.optimizer._auxiliary.tensors["stored"].items()}
    masks = {n: mask for n, (_, mask, _) in weights(training.model).items()}
    returned = False
    for _ in range(30):
        learn(training, 1)
        now = {n: mask for n, (_, mask, _) in weights(training.model).items()}
        returned |= any(bool((now[n] & ~masks[n]).any()) for n in now)
        masks = now
    after = training.optimizer._auxiliary.tensors["stored"]
    assert all(bool((after[n] != before[n])[~masks[n]].any()) for n in masks)
    assert returned


def test_gradual_keeps_the_stored_values_of_masked_weights():
    training = begin("gradual", every=2, steps=20)
    learn(training, 8)
    stored = {n: t.clone() for n, t in training.optimizer._auxiliary.tensors["stored"].items()}
    masks = {n: mask for n, (_, mask, _) in weights(training.model).items()}
    assert all(bool(stored[n][~masks[n]].any()) for n in masks)
    learn(training, 1)
    for name, tensor in training.optimizer._auxiliary.tensors["stored"].items():
        assert torch.equal(tensor[~masks[name]], stored[name][~masks[name]])
        assert not torch.equal(tensor[masks[name]], stored[name][masks[name]])


def test_top_kast_trains_the_backward_set_alone():
    training = begin("top-kast", every=1, backward=0.25)
    learn(training, 1)
    auxiliary = training.optimizer._auxiliary.tensors
    for name, (_, mask, _) in weights(training.model).items():
        backward, sizes = auxiliary["backward"][name], auxiliary["stored"][name].abs()
        assert int(backward.sum()) == int(mask.sum()) + round(0.25 * mask.numel())
        assert not (mask & ~backward).any()
        assert sizes[mask].min() >= sizes[~mask].max()
        assert sizes[backward].min() >= sizes[~backward].max()
    before = {n: (t.clone(), auxiliary["backward"][n].clone()) for n, t in auxiliary["stored"].items()}
    learn(training, 1)
    for name, (stored, backward) in before.items():
        assert torch.equal(auxiliary["stored"][name][~backward], stored[~backward])
        assert not torch.equal(auxiliary["stored"][name][backward], stored[backward])


def test_the_exploration_penalty_by_hand():
    layer = LayerState(
        "layer",
        torch.tensor([2.0, 0.0, 0.0]),
        torch.tensor([1, 0, 0]).bool(),
        stored=torch.tensor([2.0, -1.0, 0.5]),
        backward=torch.tensor([1, 1, 0]).bool(),
    )
    assert ExplorationPenalty(0.1, 0.5)(layer, UpdateContext()).tolist() == pytest.approx([0.1, -0.2, 0.0])


def test_granet_thins_and_swaps():
    training = begin("granet", every=2, steps=40)
    totals = []
    for _ in range(20):
        learn(training, 2)
        totals.append(sum(int(mask.sum()) for _, mask, _ in weights(training.model).values()))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == totals[14] == 64  # from 110 of 160 on, the density stays
    assert any(layer.grown for record in training.optimizer.history[15:] for layer in record.layers)


def test_itop_counts_what_was_ever_active():
    training = begin("set-itop", every=2)
    explored = [training.optimizer.explored]
    for _ in range(9):
        learn(training, 2)
        explored.append(training.optimizer.explored)
    assert explored == sorted(explored)
    assert explored[0] == 0.25 < explored[-1] <= 1
    assert begin("static").optimizer.explored is None


def test_buffers_of_inactive_weights():
    for name, emptied in (("set-itop", True), ("sparse-momentum", False)):
        training = begin(name, every=3)
        learn(training, 8)
        for masked in masked_weights(training.model):
            buffer = training.optimizer.state[masked.weight]["momentum_buffer"]
            assert bool(buffer[~masked.mask].any()) is not emptied


def test_lottery_tickets_begin_where_they_began():
    training = begin("lottery-ticket", prunings=3, rewind=0.25)
    first = {}
    for number in training.rounds():
        if number:
            for name, (weight, mask, _) in weights(training.model).items():
                assert torch.equal(weight, torch.where(mask, first[name], 0.0))
            assert (training.first_step, training.steps) == (5, 15)
        for step in range(training.steps):
            learn(training, 1)
            if number == 0 and step == 4:
                first = {name: weight for name, (weight, _, _) in weights(training.model).items()}
    total = sum(int(mask.sum()) for _, mask, _ in weights(training.finish()).values())
    assert total == 64


def test_retraining_goes_on_from_the_trained_weights():
    training = begin("han", prunings=1)
    learn(training, training.steps)
    before = weights(training.model)
    training.next_round()
    assert training.learning_rate == 0.1
    for name, (weight, mask, _) in weights(training.model).items():
        assert torch.equal(weight, torch.where(mask, before[name][0], 0.0))


def test_a_round_of_dense_training_has_no_updates():
    training = begin("compressed-sparse", epochs=1)
    learn(training, training.steps)
    assert training.optimizer.history == []
    assert training.next_round()
    learn(training, training.steps)
    assert len(training.optimizer.history) == 1
    assert not training.next_round()


def test_thinning_that_no_update_came_to_is_done_at_the_end():
    with pytest.warns(UserWarning, match="'gradual' updates its masks at no step of 20"):
        training = begin("gradual", every=1000)
    learn(training, 20)
    assert sum(int(mask.sum()) for _, mask, _ in weights(training.finish()).values()) == 64


def test_constant_fan_in_from_the_start():
    training = begin("srigl", density=0.3, every=3)
    for weight, mask, _ in weights(training.model).values():
        assert torch.equal(weight != 0, mask)  # the network's own values, none of them lost to another mask
    for _ in range(4):
        for _, mask, _ in weights(training.model).values():
            counts = mask.sum(1)
            assert len(counts[counts > 0].unique()) == 1
        learn(training, 3)


def test_snip_keeps_the_largest_products_of_weight_and_gradient():
    training = begin("snip")
    kept = sum(int(mask.sum()) for _, mask, _ in weights(training.model).values())
    assert kept == 64


def test_a_method_prints_changes_and_refuses():
    changed = method("rigl", density=0.05, grow="random", every=7)
    assert (changed.density, changed.grow, changed.timing.every) == (0.05, "random", 7)
    assert METHODS["rigl"].timing.every == 100
    assert dataclasses.replace(changed, name="mine").name == "mine"
    lines = [line.split(maxsplit=1) for line in str(changed).splitlines()]
    assert [name for name, _ in lines] == list(options_of(changed))
    assert {("grow", "'random'"), ("timing", "Timing(every=7, last=0.75)")} <= set(map(tuple, lines))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rigel", {}, r"method='rigel' is not known; did you mean 'rigl'"),
        ("SET", {}, r"method='SET' is not known; did you mean 'set'\?"),
        ("rigl", {"grwo": "random"}, r"method option='grwo' is not known; did you mean 'grow'"),
        ("rigl", {"grow": "sideways"}, r"grow='sideways' is not known"),
        ("rigl", {"density": 0}, r"density=0 is not in \(0, 1\]"),
        ("rigl", {"prune_rate": 2}, r"prune_rate=2 is not in \[0, 1\]"),
        ("rigl", {"prunings": 3}, r"prunings: method 'rigl' has no rounds to change"),
        ("static", {"every": 3}, r"every: method 'static' has no timing to change"),
        ("han", {"prunings": -1}, r"prunings=-1 is not a whole number"),
        ("lottery-ticket", {"rewind": 2.0}, r"rewind=2.0 is neither None nor in \[0, 1.0\)"),
        ("han", {"retraining": 0}, r"retraining=0 is not above 0"),
        ("rigl", {"rounding": "up"}, r"rounding='up' is not one of 'ceil', 'floor'"),
        ("rigl", {"inactive_buffers": "masked"}, r"inactive_buffers='masked' is not one of"),
        ("rigl", {"every": 2.5}, r"2.5 is neither 'epoch' nor a whole number"),
        ("rigl", {"start": 0.5}, r"start=0.5 and density=0.1 differ, but nothing changes the density"),
        ("granet", {"start": 0.05}, r"start=0.05 is below density=0.1"),
        ("rigl", {"rounds": Rounds()}, r"rounds with prunings=1 prune between rounds"),
        ("rigl", {"rounds": Rounds(prunings=0)}, r"nothing makes this method sparse"),
        ("lottery-ticket", {"prunings": 0}, r"nothing makes this method sparse"),
        ("lottery-ticket", {"rounds": 2}, r"rounds=2 is no Rounds; prunings=2 changes how many"),
        ("rigl", {"timing": 3}, r"timing=3 is no sparsefx.Timing; every=3 changes it"),
        ("snip", {"rounds": Rounds()}, r"rounds with prunings=1|score prunes before training"),
        ("variational-dropout", {"prune": "magnitude"}, r"has no effect without timing; set timing="),
        ("set", {"memory": "all"}, r"new_weights='initial': with a memory"),
        ("rigl", {"new_weights": "sign"}, r"need signs=True"),
        ("rigl", {"least": lambda row: -1.0}, r"least and backward belong to a memory"),
        (
            "static",
            {"grow": "momentum"},
            r"grow='momentum' has no effect without prune; set prune='magnitude'",
        ),
        (
            "static",
            {"prune": "magnitude"},
            r"prune=.magnitude. has no effect without timing; set",
        ),
        ("rigl", {"prune_rate": 0}, r"prune='magnitude' at prune_rate=0 removes nothing"),
        ("dense", {"density": 0.2}, r"density=0.2: it masks nothing"),
        ("rigl", {"masks": False}, r"it masks nothing|masks=False leaves nothing"),
        ("rigl", {"width": True}, r"set masks=False"),
        ("rigl", {"width": 3}, r"width=3 is neither True nor False"),
        ("rigl", {"density": True}, r"density=True is not in"),
        ("rigl", {"distribution": "even"}, r"distribution='even' is not known"),
        ("top-kast", {"backward": -3}, r"backward=-3 is not in"),
        ("snip", {"score_batches": -1}, r"score_batches=-1 is not 'balanced' or a whole number"),
        ("hard-concrete", {"strenght": 1}, r"did you mean 'strength'"),
    ],
)
def test_methods_that_cannot_be(name, changes, message):
    with pytest.raises(ArgumentError, match=message):
        method(name, **changes)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_options(name):
    row = METHODS[name]
    options = {key: value for key, value in options_of(row).items() if key not in ("name", "source")}
    assert Method.of(name, row.source, **options) == row
    assert {key: getattr(row, key) for key in options} == options


def test_a_part_comes_with_its_key_and_goes_with_it():
    rigl = method("rigl")
    assert rigl.with_(densities="cubic", start=1.0).updates.falling.thin_until == 1.0
    assert method("granet", densities=None, start=None).updates.falling is None
    assert method("rigl", timing=None).updates is None
    kept = method("static").with_(memory="all").weights
    assert kept == WeightRules(memory="all")
    with pytest.raises(AttributeError, match="has no attribute 'momentum'"):
        rigl.momentum  # noqa: B018


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sparsity(0.5, start=0.1), "start=0.1 is below density=0.5"),
        (lambda: FirstMasks(masks=False, score="snip"), "masks=False leaves nothing to score"),
        (lambda: FirstMasks(constant_fan_in=True, score="snip"), "both choose the first masks"),
        (lambda: Updates(Timing()), "there is nothing to be timed"),
        (lambda: Updates(Timing(), regrowth=Regrowth("magnitude")), "removes nothing; set prune_rate=0.5"),
        (lambda: Regrowth("magnitude", grow="sideways"), "grow='sideways' is not known"),
        (lambda: WeightRules(memory="all", new_weights="initial"), "with a memory new weights have"),
        (lambda: WeightRules(new_weights="sign"), "need signs=True"),
    ],
)
def test_parts_that_cannot_be(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_training_that_cannot_be():
    with pytest.raises(ArgumentError, match="steps=0 is not a whole number"):
        Training(method("rigl"), net(), sgd, steps=0, epoch_steps=1)
    with pytest.raises(ArgumentError, match="samples: method 'variational-dropout' needs the number"):
        Training(method("variational-dropout"), net(), sgd, steps=10, epoch_steps=1)
    training = begin("snip")
    with pytest.raises(CheckpointError, match=r"state_dict is of method .*'grasp'.*, not .*'snip'"):
        training.load_state_dict(begin("grasp").state_dict())
    with pytest.raises(CheckpointError, match=r"state_dict is of method .*0.5.*, not .*0.25"):
        training.load_state_dict(begin("snip", density=0.5).state_dict())
    with pytest.raises(CheckpointError, match="is not one of a Training"):
        training.load_state_dict({})
    with pytest.raises(ArgumentError, match=r"method='rigl' is no Method; pass sparsefx.method"):
        Training("rigl", net(), sgd, steps=1, epoch_steps=1)
    with pytest.raises(ArgumentError, match="make_optimizer is SGD, not a function of parameters"):
        Training(method("snip"), net(), sgd(net().parameters()), steps=1, epoch_steps=1)
    with pytest.raises(ArgumentError, match="needs a narrower network, not masks"):
        Training(method("thin-dense"), net(), sgd, steps=1, epoch_steps=1)
    with pytest.raises(ArgumentError, match=r"generator=3 is no torch\.Generator"):
        Training(method("snip"), net(), sgd, steps=1, epoch_steps=1, generator=3)


def test_rules_of_ones_own():
    model = sparsify(net(), 0.5)
    rules = Rules((GradualPruning(0.5, 0.25, lambda start, final, progress: final),))
    optimizer = SparseOptimizer(sgd(model.parameters()), model, rules, Clock(Timing(every=1), 10, 5))
    model(torch.randn(4, 12)).sum().backward()
    optimizer.step()
    assert sum(int(m.mask.sum()) for m in masked_weights(model)) == 64


def test_a_memory_takes_no_closure():
    training = begin("gradual", every=2)
    with pytest.raises(ArgumentError, match="a method that stores inactive weights cannot take one"):
        training.optimizer.step(lambda: 0.0)


def test_rounds_divide_the_pruning_evenly():
    rounds = Rounds(prunings=3)
    assert [rounds.density(number, 0.001) for number in range(4)] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert (rounds.count, Rounds(prunings=0).count) == (4, 2)


def test_every_method_is_documented():
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("tier", ["measured", "checked"])
def test_the_page_says_how_far_each_method_is_tested(tier):
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    item = page.read_text(encoding="utf-8").partition(f"- **{tier}**")[2]
    names = re.findall(r"`([^`]+)`", re.split(r"\n- |\n\n", item)[0])
    assert set(names) == {name for name, row in METHODS.items() if row.tier == tier}


def test_a_cycle_without_updates_changes_nothing():
    training = begin("static")
    learn(training, 1)
    before = weights(training.model)
    record = training.optimizer.cycle()
    assert [(layer.pruned, layer.grown) for layer in record.layers] == [(0, 0), (0, 0)]
    assert all(torch.equal(mask, before[name][1]) for name, (_, mask, _) in weights(training.model).items())


def test_the_history_is_one_list_of_bounded_length(monkeypatch):
    monkeypatch.setattr("sparsefx.optim.sparse_optimizer._LONGEST_HISTORY", 3)
    training = begin("deep-r", make=plain_sgd)
    history = training.optimizer.history
    learn(training, 5)
    assert [record.step for record in history] == [3, 4, 5]


def state_of(training):
    return {key: tensor.clone() for key, tensor in training.model.state_dict().items()}


def test_resuming_keeps_the_point_to_rewind_to():
    first = begin("lottery-ticket", prunings=2)
    start = {name: weight for name, (weight, _, _) in weights(first.model).items()}
    learn(first, 5)
    second = begin("lottery-ticket", prunings=2)
    second.model.load_state_dict(state_of(first))
    second.load_state_dict(first.state_dict())
    learn(second, 15)
    second.next_round()
    for name, (weight, mask, _) in weights(second.model).items():
        assert torch.equal(weight, torch.where(mask, start[name], 0.0))


def test_a_round_that_ends_too_early_cannot_be_rewound():
    training = begin("lottery-ticket", prunings=2, rewind=0.5)
    learn(training, 3)
    with pytest.raises(ArgumentError, match="this round ended before step 10"):
        training.next_round()
    assert training.round == 0


def test_rewinding_reaches_stored_values():
    training = begin("dynamic-network-surgery", rewind=0.0, chance=None)
    start = {name: weight for name, (weight, _, _) in weights(training.model).items()}
    learn(training, 20)
    training.next_round()
    for name, stored in training.optimizer._auxiliary.tensors["stored"].items():
        assert torch.equal(stored, start[name])


def test_top_kast_explores():
    training = begin("top-kast", every=5, backward=0.25, steps=40)
    for name, (_, mask, _) in weights(training.model).items():
        assert int(mask.sum()) == round(0.25 * mask.numel())
        assert bool(training.optimizer._auxiliary.tensors["stored"][name].all())
    ever = {n: b.clone() for n, b in training.optimizer._auxiliary.tensors["backward"].items()}
    first = {n: int(b.sum()) for n, b in ever.items()}
    learn(training, 38)
    for name, backward in training.optimizer._auxiliary.tensors["backward"].items():
        ever[name] |= backward
    assert sum(int(b.sum()) for b in ever.values()) > sum(first.values())
    for masked in masked_weights(training.model):
        outside = ~training.optimizer._auxiliary.tensors["backward"][masked.name]
        assert not training.optimizer.state[masked.weight]["momentum_buffer"][outside].any()


@pytest.mark.parametrize("name", ["dsr", "deep-r"])
def test_methods_without_a_rate_may_read_momentum(name):
    training = begin(name, grow="momentum", redistribute="momentum", every=2)
    learn(training, 4)
    assert [record.step for record in training.optimizer.history] == [2, 4]


def test_shares_are_recorded():
    training = begin("sparse-momentum")
    learn(training, 5)
    assert sum(layer.share for layer in training.optimizer.history[-1].layers) == pytest.approx(1)


@pytest.mark.parametrize(
    "name", ["set", "rigl-itop", "srigl", "top-kast", "soft-deep-r", "dynamic-network-surgery"]
)
def test_a_layer_may_join_later(name):
    extra = {"every": 2} if METHODS[name].timing.chance is None else {"chance": None}
    network = net()
    network[2].requires_grad_(False)
    training = Training(
        method(name, density=0.5, **extra),
        network,
        lambda parameters: torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1),
        steps=20,
        epoch_steps=5,
    )
    for _ in range(1 if METHODS[name].rounds is None else 2):
        learn(training, 4)
        training.next_round()
    last = training.model.get_submodule("2").requires_grad_(True)
    training.optimizer.add_param_group({"params": list(last.parameters())})
    learn(training, 4)
    assert len(training.optimizer.history[-1].layers) == 2


def old_state(training):
    """A state as it was saved when all updates shared their notes."""
    state = copy.deepcopy(training.optimizer.state_dict())
    own = dict(state["sparse_momentum"])
    names = own.pop("updates")
    own["notes"] = {key: value for name in names for key, value in own["notes"].get(name, {}).items()}
    assert own["notes"]
    return {**state, "sparse_momentum": own}


@pytest.mark.parametrize(
    "changes",
    [
        ("dsr", {}),
        ("srigl", {"density": 0.5}),
        ("dynamic-network-surgery", {"rounds": Rounds(prunings=0), "chance": None}),
    ],
    ids=lambda changes: changes[0],
)
def test_states_with_shared_notes_still_load(changes):
    name, options = changes
    if name == "dynamic-network-surgery":
        options = {**options, "update": lambda sparsity: Hysteresis(sparsity.density, deviations=1.0)}
    first, second = (begin(name, every=2, **options) for _ in range(2))
    if first.method.rounds is not None:
        for training in (first, second):
            learn(training, 20)
            training.next_round()
    learn(first, 5)
    second.model.load_state_dict(state_of(first))
    second.optimizer.load_state_dict(old_state(first))
    assert second.optimizer._notes == first.optimizer._notes
    for training in (first, second):
        learn(training, 4)
    assert_same(state_of(first), state_of(second))
    assert_same(first.optimizer.state_dict(), second.optimizer.state_dict())


def test_a_state_of_a_method_that_keeps_other_things_is_refused():
    with pytest.raises(CheckpointError, match="keeps nothing beside weights, this one keeps explored"):
        begin("rigl-itop", every=3).optimizer.load_state_dict(begin("rigl", every=3).optimizer.state_dict())


def test_copies_follow_their_own_schedule():
    training = begin("learning-compression")
    learn(training, 20)
    training.next_round()
    learn(training, 5)
    twin = copy.deepcopy(training)
    learn(training, 5)
    learn(twin, 5)
    assert twin.regulariser is not training.regulariser
    assert twin.regulariser.progress == training.regulariser.progress == 0.5


def test_a_failed_pruning_leaves_the_round_as_it_was():
    training = begin("han", prunings=2)
    learn(training, 20)
    parameter = training.model.get_parameter("0.weight")
    kept = parameter.detach().clone()
    parameter.data.fill_(float("nan"))
    with pytest.raises(ArgumentError, match="not finite"):
        training.next_round()
    assert training.round == 0
    parameter.data.copy_(kept)
    training.next_round()
    total = sum(int(mask.sum()) for _, mask, _ in weights(training.model).values())
    assert total == round(0.25**0.5 * 256)


def test_a_failed_load_changes_nothing():
    training = begin("hard-concrete")
    learn(training, 3)
    before, regulariser, optimizer = state_of(training), training.regulariser, training.optimizer
    state = training.state_dict()
    state["optimizer"] = {}
    with pytest.raises(CheckpointError):
        training.load_state_dict(state)
    assert training.regulariser is regulariser
    assert training.optimizer is optimizer
    learn(training, 1)
    assert before.keys() == state_of(training).keys()


def test_a_failed_step_leaves_masked_weights():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no")

    training = begin("gradual", make=lambda parameters: Failing(parameters, lr=0.1), every=2)
    training.optimizer._auxiliary.tensors["stored"]["0"].fill_(1.0)
    masked = masked_weights(training.model)[0]
    masked.set_mask(torch.zeros_like(masked.mask))
    with pytest.raises(RuntimeError, match="no"):
        learn(training, 1)
    assert not masked.weight.any()


def test_finishing_too_early_is_told():
    training = begin("lottery-ticket", prunings=2)
    with pytest.raises(ArgumentError, match="round 1 of 3: method 'lottery-ticket' is not done"):
        training.finish()
    training = begin("static")
    learn(training, 3)
    with pytest.warns(UserWarning, match="finished after 3 of 20 steps"):
        training.finish()


def test_a_forgotten_penalty_is_told():
    training = begin("hard-concrete")
    training.model(torch.randn(4, 12)).sum().backward()
    with pytest.warns(UserWarning, match=r"training.penalty\(\) was not called in step 1"):
        training.optimizer.step()


def test_an_optimizer_of_a_former_round_refuses_to_step():
    training = begin("lottery-ticket", prunings=1)
    former = training.optimizer
    learn(training, 20)
    training.next_round()
    with pytest.raises(ArgumentError, match="round 1 has begun with a new optimizer"):
        former.step()


def test_arguments_of_a_regulariser_are_options_of_its_method():
    changed = method("hard-concrete", strength=0.5, drop_rate=0.2)
    assert dict(changed.options(changed)) == {"strength": 0.5, "drop_rate": 0.2}
    assert dict(method("learning-compression", density=0.2, c_steps=5).options(changed)) == {
        "level": changed.density,
        "c_steps": 5,
    }


def test_models_may_change_their_type():
    training = begin("top-kast", every=2)
    training.model.double()
    training.optimizer.zero_grad()
    training.model(torch.randn(4, 12, dtype=torch.float64)).sum().backward()
    training.optimizer.step()
    assert training.optimizer._auxiliary.tensors["stored"]["0"].dtype == torch.float64


def test_srigl_uses_its_whole_budget_after_ablation():
    shape = torch.Size((100, 20))
    mask = constant_fan_in_mask(shape, 133, torch.Generator().manual_seed(0))
    assert int(mask.sum()) == 100
    weight, gradient = torch.zeros(shape), torch.zeros(shape)
    weight[:16] = 1.0
    gradient[:16] = 1.0
    layer = LayerState("layer", weight * mask, mask, gradient=gradient)
    update = ConstantFanIn(0.9, density=133 / 2000)
    after = update([layer, layer], UpdateContext(rate=0.3))[0].mask
    neurons = int(after.any(1).sum())
    assert int(after.sum()) == neurons * (133 // neurons) > 133 - neurons


def test_layers_are_pruned_by_the_distribution_of_the_method():
    training = begin("han", prunings=1, density=0.5, distribution="erk")
    learn(training, 20)
    training.next_round()
    kept = [int(mask.sum()) for _, mask, _ in weights(training.model).values()]
    assert kept == active_counts([torch.Size((16, 12)), torch.Size((4, 16))], 0.5, "erk")
    assert kept[0] < 0.5 * 16 * 12
