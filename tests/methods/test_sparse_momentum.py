"""SparseMomentum: the invariant, cycles, and passing for an ordinary optimizer."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from helpers import assert_same, masked_conv_net, masked_mlp, total_active
from torch import nn
from torch.optim import lr_scheduler

from sparsefx.errors import ArgumentError, CheckpointError, CycleError
from sparsefx.masking.mask_values import zero_outside
from sparsefx.masking.masks import check_invariant, masked_weights
from sparsefx.methods import method
from sparsefx.methods.sparse_momentum import SparseMomentum

torch.set_num_threads(1)
SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "plain sgd": lambda p: SGD(p, lr=0.1),
    "foreach sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "fused sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, lr=0.01),
    "fused adam": lambda p: Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.01, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
}


def wrap(model, make=OPTIMIZERS["sgd"], cycles=4, **options):
    return SparseMomentum(make(model.parameters()), model, cycles=cycles, **options)


def backward(model, optimizer, seed=0):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss


def train(model, optimizer, steps, first=0):
    for seed in range(first, first + steps):
        backward(model, optimizer, seed)
        optimizer.step()


def mlp(density=0.3):
    return masked_mlp(6, 12, 10, 3, density=density)


def masks(model):
    return [masked.mask.clone() for masked in masked_weights(model)]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("grow", ["momentum", "random", "gradient", "momentum_neuron"])
def test_counts_and_invariant_hold_throughout(name, grow):
    model = mlp()
    optimizer = wrap(model, OPTIMIZERS[name], grow=grow)
    active = total_active(model)
    for epoch in range(4):
        train(model, optimizer, 3, 3 * epoch)
        check_invariant(model)
        before = masks(model)
        optimizer.cycle()
        check_invariant(model)
        assert total_active(model) == active
        changed = any(not torch.equal(a, b) for a, b in zip(before, masks(model), strict=True))
        assert changed == (epoch < 3)  # the last of four cycles has rate 0


def test_biases_train_and_stay_dense():
    model = mlp()
    bias = model[0].bias.clone()
    train(model, wrap(model), 2)
    assert (model[0].bias != bias).all()


def test_convolutions():
    model = masked_conv_net()
    optimizer = wrap(model)
    active = total_active(model)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    optimizer.cycle()
    check_invariant(model)
    assert total_active(model) == active


def test_the_rate_follows_the_decay_and_stays_at_its_end():
    optimizer = wrap(model := mlp(), cycles=2, decay="linear", prune_rate=0.4)
    train(model, optimizer, 1)
    assert [optimizer.cycle().prune_rate for _ in range(2)] == pytest.approx([0.2, 0.0])
    with pytest.warns(
        UserWarning, match=r"cycle 3 of cycles=2: the prune rate has come to 0 .* give cycles="
    ):
        assert optimizer.cycle().prune_rate == 0
    assert optimizer.cycle().prune_rate == 0  # said once
    assert [record.cycle for record in optimizer.history] == [1, 2, 3, 4]


def test_a_rate_that_stays_is_not_warned_of():
    optimizer = wrap(model := mlp(), cycles=1, decay="constant")
    train(model, optimizer, 1)
    assert [optimizer.cycle().prune_rate for _ in range(3)] == [0.5, 0.5, 0.5]


def test_every_runs_cycles_by_steps():
    optimizer = wrap(model := mlp(), cycles=3, every=2)
    train(model, optimizer, 7)
    assert [(record.cycle, record.step) for record in optimizer.history] == [(1, 2), (2, 4), (3, 6)]
    assert optimizer.history[-1].prune_rate == 0


def test_grown_weights_start_at_zero_even_where_just_pruned():
    model = masked_mlp(6, 3, density=17 / 18)
    optimizer = wrap(model, redistribute="none", decay="constant")
    train(model, optimizer, 1)
    record = optimizer.cycle().layers[0]  # all but one place of what it may grow were just pruned
    assert record.pruned == record.grown == 9
    assert int((model[0].weight == 0).sum()) == 10
    train(model, optimizer, 1)
    assert int((model[0].weight == 0).sum()) == 1


def test_a_full_layer_without_redistribution_is_left_alone():
    model = masked_mlp(6, 3, density=1.0)
    optimizer = wrap(model, redistribute="none", decay="constant")
    train(model, optimizer, 1)
    before = model[0].weight.detach().clone()
    assert optimizer.cycle().layers[0].pruned == 0
    assert torch.equal(model[0].weight, before)


def test_a_cycle_leaves_what_it_keeps_alone_and_grows_zeros():
    model = mlp()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    before = {masked.name: masked.weight.detach().clone() for masked in masked_weights(model)}
    optimizer.cycle()
    for masked in masked_weights(model):
        kept = masked.weight != 0
        assert int(masked.mask.sum()) > int(kept.sum())
        assert torch.equal(masked.weight[kept], before[masked.name][kept])


def test_buffers_at_inactive_positions_are_kept():
    optimizer = wrap(model := mlp())
    train(model, optimizer, 2)
    buffer = optimizer.state[model[0].weight]["momentum_buffer"]
    before = buffer.clone()
    assert (before[~model[0].mask] != 0).any()
    optimizer.cycle()
    assert torch.equal(buffer, before)


def test_history_is_in_numbers():
    optimizer = wrap(model := mlp())
    train(model, optimizer, 2)
    record = optimizer.cycle()
    assert optimizer.history == [record]
    assert [layer.name for layer in record.layers] == ["0", "2", "4"]
    assert [layer.active for layer in record.layers] == [int(mask.sum()) for mask in masks(model)]


def test_dense_layers_are_skipped_until_their_mask_changes():
    model = masked_mlp(6, 3, density=1.0)
    optimizer = wrap(model)
    train(model, optimizer, 1)
    assert (model[0].weight != 0).all()
    sparse = masked_mlp(6, 3, density=0.3).state_dict()
    model.load_state_dict(sparse)
    train(model, optimizer, 1)
    check_invariant(model)
    assert not model[0].mask.all()


def test_tensors_that_are_replaced_are_found():
    model = mlp()
    optimizer = wrap(model)
    model[0].mask = torch.zeros_like(model[0].mask)
    train(model, optimizer, 1)
    assert not model[0].weight.any()
    model.double()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.state.clear()
    optimizer.step()
    assert not model[0].weight.any()


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128],
)
def test_zero_outside_is_exact_and_clears_what_is_not_finite(dtype):
    weight = torch.randn(4, 6).to(dtype)
    mask = torch.rand(4, 6) < 0.5
    weight[~mask] = torch.tensor([float("nan"), float("inf"), 1.0])[
        torch.randint(0, 3, (int((~mask).sum()),))
    ].to(dtype)
    expected = torch.where(mask, weight, torch.zeros((), dtype=dtype))
    for layout in (weight.clone(), weight.t().contiguous().t()):
        zero_outside(layout, mask)
        assert torch.equal(layout, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_a_mask(bad):
    model = mlp()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    inactive = (~model[0].mask).nonzero()[0]
    optimizer.state[model[0].weight]["momentum_buffer"][tuple(inactive)] = bad
    train(model, optimizer, 1)
    check_invariant(model)
    active = total_active(model)
    optimizer.cycle()
    assert total_active(model) == active
    assert not model[0].mask[tuple(inactive)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cycle_says_that_training_has_diverged(bad):
    model = mlp()
    optimizer = wrap(model)
    train(model, optimizer, 1)
    with torch.no_grad():
        model[2].weight[tuple(model[2].mask.nonzero()[0])] = bad
    with pytest.warns(UserWarning, match=r"weights of 2 and 0 more layers are not finite.* prune_rate"):
        optimizer.cycle()
    check_invariant(model)


def test_own_average_of_the_gradient_by_hand():
    model = masked_mlp(2, 1, density=1.0)
    optimizer = wrap(model, lambda p: SGD(p, lr=0.1))
    for gradient in (1.0, float("nan"), 3.0):
        model[0].weight.grad = torch.tensor([[gradient, 2.0]])
        optimizer.step()
    averages = optimizer.state_dict()["sparse_momentum"]["averages"]
    assert averages["0"] == pytest.approx(torch.tensor([[0.081 + 0.3, 0.542]]))


@pytest.mark.parametrize(
    ("make", "options"),
    [(OPTIMIZERS["sgd"], {}), (OPTIMIZERS["plain sgd"], {"redistribute": "none", "grow": "random"})],
)
def test_no_average_is_kept_where_none_is_needed(make, options):
    optimizer = wrap(model := mlp(), make, **options)
    train(model, optimizer, 2)
    assert optimizer.state_dict()["sparse_momentum"]["averages"] == {}


def resumable(name, grow):
    model = mlp()
    return model, wrap(model, OPTIMIZERS[name], cycles=6, grow=grow, prune_rate=0.6)


def epochs(model, optimizer, first, last):
    for epoch in range(first, last):
        train(model, optimizer, 3, 3 * epoch)
        optimizer.cycle()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("grow", ["momentum", "random"])
def test_resuming_is_bit_identical(name, grow):
    straight, optimizer = resumable(name, grow)
    epochs(straight, optimizer, 0, 5)
    stopped, halfway = resumable(name, grow)
    epochs(stopped, halfway, 0, 2)
    file = io.BytesIO()
    torch.save({"model": stopped.state_dict(), "optimizer": halfway.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, fresh = resumable(name, grow)
    resumed.load_state_dict(saved["model"])
    fresh.load_state_dict(saved["optimizer"])
    epochs(resumed, fresh, 2, 5)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert fresh.history == optimizer.history


def test_a_loaded_state_is_not_shared():
    model, optimizer = resumable("plain sgd", "momentum")
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    other_model, other = resumable("plain sgd", "momentum")
    other.load_state_dict(saved)
    before = saved["sparse_momentum"]["averages"]["0"].clone()
    train(other_model, other, 1, 9)
    assert torch.equal(saved["sparse_momentum"]["averages"]["0"], before)


def test_checkpoints_that_do_not_fit_change_nothing():
    optimizer = wrap(model := mlp())
    train(model, optimizer, 1)
    optimizer.cycle()
    plain = SGD(model.parameters(), lr=0.7).state_dict()
    with pytest.raises(CheckpointError, match="no 'sparse_momentum' entry; it must come from SparseMomentum"):
        optimizer.load_state_dict(plain)
    with pytest.raises(
        CheckpointError, match=r"saved for other masked layers: 0, 2, 4 differ in name or shape"
    ):
        optimizer.load_state_dict(wrap(masked_mlp(5, 4, 4, 2)).state_dict())
    own = optimizer.state_dict()["sparse_momentum"]
    lacking = {key: value for key, value in own.items() if key not in ("generator", "history")}
    with pytest.raises(CheckpointError, match="lacks generator, history; save it again"):
        optimizer.load_state_dict({**plain, "sparse_momentum": lacking})
    with pytest.raises(
        CheckpointError, match="does not fit the wrapped SGD: loaded state dict has a different number"
    ):
        optimizer.load_state_dict({"state": {}, "param_groups": [], "sparse_momentum": own})
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(optimizer.history) == 1


SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_schedulers_see_an_optimizer(name):
    def rates(wrapped):
        model = mlp()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = SparseMomentum(optimizer, model, cycles=3) if wrapped else optimizer
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="The epoch parameter")  # torch's own SequentialLR
            scheduler = SCHEDULERS[name](optimizer)
            seen = []
            for seed in range(4):
                train(model, optimizer, 1, seed)
                scheduler.step()
                group = optimizer.param_groups[0]
                seen.append((group["lr"], group["momentum"]))
        return seen

    assert rates(wrapped=True) == rates(wrapped=False)
    assert len(set(rates(wrapped=True))) > 1


def test_reduce_on_plateau():
    optimizer = wrap(model := mlp())
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("name", ["sgd", "fused sgd", "plain sgd", "adam", "fused adam"])
def test_a_step_that_the_scaler_skips_changes_nothing(name):
    model = mlp()
    optimizer = wrap(model, OPTIMIZERS[name], every=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 6)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model[0].weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert str(before) == str((model.state_dict(), optimizer.state_dict()))
    backward(model, optimizer)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert optimizer.state_dict()["sparse_momentum"]["step"] == 4
    check_invariant(model)


@pytest.mark.parametrize("fused", [False, True])
def test_the_scaler_gives_the_unscaled_result(fused):
    def weights(scale):
        model = mlp()
        optimizer = wrap(model, lambda p: Adam(p, lr=0.01, fused=fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scale)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(4, 6)).square().mean()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        return model[0].weight

    assert torch.allclose(weights(True), weights(False), atol=1e-7)


def test_lbfgs_evaluates_masked_weights_only():
    model = mlp()
    optimizer = wrap(model, lambda p: torch.optim.LBFGS(p, max_iter=4))
    losses = []

    def closure():
        check_invariant(model)
        losses.append(backward(model, optimizer))
        return losses[-1]

    for _ in range(3):
        optimizer.step(closure)
        check_invariant(model)
    optimizer.cycle()
    check_invariant(model)
    assert len(losses) >= 6
    assert losses[-1] < losses[0]


def test_hooks_run_once_and_in_order():
    optimizer = wrap(model := mlp())
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: calls.append(state.pop("mine")))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    train(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after", "saving", 1, "loaded"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_train_on_their_own(duplicate):
    model = mlp()
    optimizer = wrap(model, grow="random")
    lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, 2)
    optimizer.cycle()
    twin, twin_optimizer = duplicate((model, optimizer))
    for pair in ((model, optimizer), (twin, twin_optimizer)):
        train(*pair, 2, 5)
        pair[1].cycle()
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    assert twin_optimizer.history == optimizer.history
    assert twin[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_zero_grad_and_repr():
    optimizer = wrap(model := mlp())
    train(model, optimizer, 1)
    optimizer.zero_grad(set_to_none=False)
    assert not model[0].weight.grad.any()
    optimizer.zero_grad()
    assert model[0].weight.grad is None
    assert repr(optimizer).startswith(
        "SparseMomentum(cycle 0, step 1, CountedCycles(cycles=4), Rules(updates=[PruneAndRegrow("
        "prune=magnitude, redistribute=momentum, grow=momentum)], prune_rate=0.5, decay=cosine))"
    )
    assert "lr: 0.1" in repr(optimizer)


def test_it_is_an_optimizer_that_delegates():
    model = mlp()
    inner = SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = SparseMomentum(inner, model, cycles=1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults


def test_a_frozen_layer_is_left_alone():
    model = mlp()
    model[2].weight.requires_grad_(False)
    optimizer = SparseMomentum(
        SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9), model, cycles=3
    )
    before = model[2].weight.clone()
    train(model, optimizer, 2)
    assert [layer.name for layer in optimizer.cycle().layers] == ["0", "4"]
    assert torch.equal(model[2].weight, before)
    model[0].weight.requires_grad_(False)  # frozen later: its weights could not be trained again
    assert [layer.name for layer in optimizer.cycle().layers] == ["4"]


def test_a_layer_added_later_takes_part():
    model = mlp()
    model[2].weight.requires_grad_(False)
    optimizer = SparseMomentum(
        SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9), model, cycles=3
    )
    model[2].weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model[2].weight]})
    train(model, optimizer, 1)
    check_invariant(model)
    assert [layer.name for layer in optimizer.cycle().layers] == ["0", "2", "4"]


def frozen_middle(names=("2",)):
    """A wrapped optimizer without some layers, which are frozen."""
    model = mlp()
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, SparseMomentum(SGD(trained, lr=0.1, momentum=0.9), model, cycles=5)


@pytest.mark.parametrize("how", ["group", "append", "param_groups"])
def test_what_is_added_to_the_wrapped_optimizer_is_masked_from_the_next_step_on(how):
    model, optimizer = frozen_middle()
    train(model, optimizer, 1)
    model[2].requires_grad_(True)
    added, groups = list(model[2].parameters()), optimizer.wrapped.param_groups
    if how == "group":
        optimizer.wrapped.add_param_group({"params": added})
    elif how == "append":
        groups[0]["params"] += added
    else:  # as Lightning's fine-tuning callbacks do where training goes on
        optimizer.param_groups = [{**groups[0], "params": groups[0]["params"] + added}]
    for step in range(3):
        train(model, optimizer, 1, first=step)
        check_invariant(model)
    assert optimizer.state_dict()["sparse_momentum"]["layers"].keys() == {"0", "2", "4"}
    assert [layer.name for layer in optimizer.cycle().layers] == ["0", "2", "4"]


def test_a_trainable_weight_that_a_new_group_leaves_out_is_named_before_anything_changes():
    model, optimizer = frozen_middle(("2", "4"))
    model.requires_grad_(True)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(
        ArgumentError, match=r"does not hold the masked weights of 4; .* until a group with them"
    ):
        optimizer.add_param_group({"params": iter(model[2].parameters())})
    assert_same(optimizer.state_dict()["param_groups"], before["param_groups"])
    model[4].requires_grad_(False)
    optimizer.add_param_group({"params": iter(model[2].parameters()), "lr": 0.01})
    optimizer.add_param_group({"params": model[4].weight})
    train(model, optimizer, 1)
    check_invariant(model)
    with pytest.raises(TypeError):
        optimizer.add_param_group({"params": {model[4].bias}})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model[4].weight]})
    assert len(optimizer.param_groups) == 3


def test_a_state_loads_into_groups_that_were_replaced_after_wrapping():
    """The order of Lightning's callbacks: wrapped first, then the groups of the checkpoint put back."""
    model, optimizer = frozen_middle()
    model[2].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    train(model, optimizer, 2)
    fresh, resumed = frozen_middle()
    fresh[2].requires_grad_(True)
    added = {**resumed.param_groups[0], "params": list(fresh[2].parameters())}
    resumed.param_groups = [*resumed.param_groups, added]
    fresh.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, wrapper in ((model, optimizer), (fresh, resumed)):
        train(net, wrapper, 2, first=2)
        wrapper.cycle()
    assert_same(fresh.state_dict(), model.state_dict())


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_masked_layer_that_is_gone_is_named_at_the_next_cycle(how):
    model = mlp()
    optimizer = wrap(model)
    train(model, optimizer, 1)
    if how == "replaced":
        model[4] = nn.Linear(10, 4)
    else:
        del model[4]
    before = masks(model)
    with pytest.raises(ArgumentError, match=r"has lost the masked layers 4 since .* resize_token_embeddings"):
        optimizer.cycle()
    assert_same(masks(model), before)


def test_a_layer_without_gradient_has_no_momentum():
    model = mlp()
    optimizer = wrap(model)
    backward(model, optimizer)
    model[2].weight.grad = None
    optimizer.step()
    layers = optimizer.cycle().layers
    assert layers[1].share == 0
    assert layers[1].grown == 0 or layers[0].density == 1


def test_what_a_cycle_lacks_is_named_and_nothing_changes():
    model = mlp()
    before = masks(model)
    optimizer = wrap(model)
    with pytest.raises(CycleError, match=r"no momentum for '0'; call cycle\(\) after at least one step\(\)"):
        optimizer.cycle()
    assert all(map(torch.equal, before, masks(model)))
    assert optimizer.history == []
    optimizer = wrap(model, redistribute="none", grow="gradient")
    train(model, optimizer, 1)
    optimizer.zero_grad()
    with pytest.raises(
        CycleError, match=r"no gradient for '0'; call cycle\(\) after step\(\) and before zero"
    ):
        optimizer.cycle()
    assert all(map(torch.equal, before, masks(model)))


def test_custom_parts():
    seen = []

    def last(layer, count, generator):
        chosen = torch.zeros_like(layer.mask).flatten()
        chosen[(~layer.mask).flatten().nonzero().flatten()[-count:] if count else []] = True
        seen.append((layer.momentum is not None, layer.gradient is not None))
        return chosen.view(layer.mask.shape)

    optimizer = wrap(model := mlp(), grow=last, decay=lambda rate, progress: rate, redistribute="nonzeros")
    train(model, optimizer, 1)
    assert optimizer.cycle().prune_rate == 0.5
    assert seen == [(True, True)] * 3
    check_invariant(model)


def test_a_decay_out_of_range():
    optimizer = wrap(mlp(), decay=lambda rate, progress: 2.0)
    with pytest.raises(CycleError, match=r"decay '<lambda>' returned 2.0 for cycle 1, progress 0.25"):
        optimizer.cycle()


def test_identical_runs_are_identical():
    states = []
    for _ in range(2):
        model, optimizer = resumable("sgd", "random")
        epochs(model, optimizer, 0, 3)
        states.append(model.state_dict())
    assert all(map(torch.equal, states[0].values(), states[1].values()))


def test_tied_weights_share_one_mask():
    model = masked_mlp(4, 4, 4)
    model[2].weight, model[2].mask = model[0].weight, model[0].mask.clone()
    optimizer = wrap(model)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert len(optimizer.cycle().layers) == 1
    assert torch.equal(model[0].mask, model[2].mask)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_wrapped_model_gives_the_same_names(compiled):
    model = mlp()
    outer = torch.compile(model, backend="eager") if compiled else nn.DataParallel(model)
    optimizer = SparseMomentum(SGD(outer.parameters(), lr=0.1, momentum=0.9), outer, cycles=2)
    train(model, optimizer, 1)
    assert [layer.name for layer in optimizer.cycle().layers] == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cycles": 0}, "cycles=0 is not a whole number of at least 1"),
        ({"cycles": 2.5}, "cycles=2.5 is not a whole number"),
        ({"cycles": True}, "cycles=True is not a whole number"),
        ({"every": 0}, "every=0 is not a whole number"),
        ({"prune_rate": 1.5}, r"prune_rate=1.5 is not in \[0, 1\]"),
        ({"prune_rate": float("nan")}, r"prune_rate=nan is not in \[0, 1\]"),
        ({"decay": "cosinus"}, "decay='cosinus' is not known; did you mean 'cosine'"),
        ({"prune": "magnitud"}, "prune='magnitud' is not known; did you mean 'magnitude'"),
        ({"redistribute": "momentun"}, "redistribute='momentun' is not known; did you mean 'momentum'"),
        ({"grow": "gradients"}, "grow='gradients' is not known; did you mean 'gradient'"),
        ({"grow": 3}, "grow=3 is neither a name .* nor a callable"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        wrap(mlp(), **options)


def test_wrong_models_and_optimizers():
    model = mlp()
    inner = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="cycles"):
        SparseMomentum(inner, model)
    with pytest.raises(ArgumentError, match=r"no masked weights; pass it through sparsefx\.sparsify"):
        SparseMomentum(inner, nn.Linear(2, 2), cycles=1)
    with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module, not SGD"):
        SparseMomentum(inner, inner, cycles=1)
    with pytest.raises(ArgumentError, match=r"must be a torch.optim.Optimizer, not Sequential"):
        SparseMomentum(model, model, cycles=1)
    with pytest.raises(ArgumentError, match="is a SparseMomentum already"):
        SparseMomentum(SparseMomentum(inner, model, cycles=1), model, cycles=1)
    with pytest.raises(ArgumentError, match="does not hold the masked weights of 0, 2, 4; build it from"):
        SparseMomentum(SGD(mlp().parameters(), lr=0.1), model, cycles=1)


def test_a_generator_on_a_device_is_refused():
    with pytest.raises(ArgumentError, match="generator is on meta; pass a CPU"):
        wrap(mlp(), generator=type("Generator", (), {"device": torch.device("meta")})())


@pytest.mark.parametrize(
    "damage",
    [
        {"generator": None},
        {"generator": torch.zeros(3, dtype=torch.uint8)},
        {"history": [{}]},
        {"cycle": "x"},
        {"averages": {"elsewhere": torch.zeros(2)}},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_damaged_state_changes_nothing(damage):
    model = masked_mlp(6, 8, 4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = SparseMomentum(sgd, model, cycles=3)
    state = optimizer.state_dict()
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    buffers = [sgd.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    state["sparse_momentum"] = {**state["sparse_momentum"], **damage}
    with pytest.raises(CheckpointError, match="sparse_momentum"):
        optimizer.load_state_dict(state)
    assert all(
        torch.equal(sgd.state[p]["momentum_buffer"], b)
        for p, b in zip(model.parameters(), buffers, strict=True)
    )


@pytest.mark.parametrize("rate", ["0.5", None, True, 1.5])
def test_a_prune_rate_that_is_none(rate):
    model = masked_mlp(6, 8)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="prune_rate="):
        SparseMomentum(sgd, model, cycles=3, prune_rate=rate)


def test_a_cycle_at_rate_0_asks_parts_that_look_at_all_layers():
    net = mlp()
    optimizer = wrap(net, cycles=2, prune="global_magnitude", grow="global_momentum")
    for _ in range(2):
        train(net, optimizer, 1)
        record = optimizer.cycle()
    assert record.prune_rate == 0
    assert not any(layer.pruned for layer in record.layers)


class ScheduleFree(torch.optim.Optimizer):
    """The switch of schedule-free optimizers (Defazio et al. 2024): averages in evaluation."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})
        self.averaged = False

    def step(self, closure=None):
        assert not self.averaged
        for weight in self.param_groups[0]["params"]:
            z = self.state[weight].setdefault("z", weight.detach().clone())
            z.sub_(weight.grad, alpha=0.1)
            weight.detach().lerp_(z, 0.1)

    def eval(self):
        self._lerp(1 - 1 / 0.9)

    def train(self):
        self._lerp(1 - 0.9)

    def _lerp(self, share):
        self.averaged = not self.averaged
        for weight in self.param_groups[0]["params"]:
            weight.detach().lerp_(self.state[weight]["z"], share)


def test_schedule_free_optimizers_switch_between_masked_weights():
    net = mlp()
    optimizer = wrap(net, ScheduleFree)
    for _ in range(3):
        train(net, optimizer, 2)
        optimizer.cycle()
        for switch, averaged in ((optimizer.eval, True), (optimizer.train, False)):
            switch()
            assert optimizer.wrapped.averaged == averaged
            check_invariant(net)


def test_the_averages_of_a_schedule_free_optimizer_are_masked_whoever_switches():
    net = mlp()
    optimizer = wrap(net, ScheduleFree)
    active = total_active(net)
    for _ in range(3):
        train(net, optimizer, 2)
        optimizer.cycle()
        optimizer.wrapped.eval()
        check_invariant(net)
        assert sum(int((m.weight != 0).sum()) for m in masked_weights(net)) <= active
        optimizer.wrapped.train()
        check_invariant(net)


@pytest.mark.parametrize("name", ["ax", "z"])
def test_weights_that_an_optimizer_keeps_are_masked_and_momentum_is_not(name):
    net = mlp()
    optimizer = wrap(net)
    train(net, optimizer, 1)
    for parameter in net.parameters():
        optimizer.state[parameter][name] = torch.ones_like(parameter)
    train(net, optimizer, 1)
    for masked in masked_weights(net):
        state = optimizer.state[masked.weight]
        assert torch.equal(state[name], masked.mask.to(state[name].dtype))
        assert state["momentum_buffer"][~masked.mask].any()


def test_other_optimizers_have_nothing_to_switch():
    net = mlp()
    optimizer = wrap(net)
    before = copy.deepcopy(net.state_dict())
    optimizer.eval()
    optimizer.train()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_it_is_the_row_sparse_momentum():
    row = method("sparse-momentum")
    assert wrap(mlp()).rules == row.rules()
    defaults = {name: p.default for name, p in inspect.signature(SparseMomentum).parameters.items()}
    names = ("prune_rate", "decay", "prune", "redistribute", "grow")
    assert {name: defaults[name] for name in names} == {name: getattr(row, name) for name in names}


def test_a_prune_rate_of_zero_holds_the_masks():
    optimizer = wrap(model := mlp(), prune_rate=0)
    before = masks(model)
    train(model, optimizer, 1)
    optimizer.cycle()
    assert all(map(torch.equal, masks(model), before))
