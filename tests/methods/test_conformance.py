"""Every method of the table keeps what all methods must: a new row inherits these tests."""

from __future__ import annotations

import copy
import functools
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsefx
from sparsefx import METHODS, Training, masked_weights, method
from sparsefx.masking.masks import check_invariant

STEPS, EPOCH, DENSITY = 12, 3, 0.3

OFTEN = {"every": 2}
OPTIONS = {
    "dsr": {"every": 2},
    "deep-r": {},
    "rigl": OFTEN,
    "snfs-erk": OFTEN,
    "set-itop": OFTEN,
    "rigl-itop": OFTEN,
    "srigl": OFTEN,
    "granet": OFTEN,
    "gradual": OFTEN,
    "mest": {"epochs": 1, "prune_rate": 0.4},
    "compressed-sparse": {"epochs": 1},
    "synflow": {"score_rounds": 5},
    "lottery-ticket": {"prunings": 2, "rewind": 0.25},
    "han": {"prunings": 2},
    "optimal-brain-damage": {"prunings": 2},
    "layer-wise-obs": {"prunings": 2},
    "dynamic-network-surgery": {"chance": None},
}

# Methods whose final number of weights is their own affair.
FREE = {"soft-deep-r", "srigl"}
DENSE = {"dense"}
NAMES = [name for name in METHODS if not METHODS[name].width]  # those narrow the network beforehand


def row(name):
    return method(name, density=1.0 if name in DENSE else DENSITY, **OPTIONS.get(name, {}))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.first = nn.Linear(6 * 4, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, x):
        h = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.last(F.relu(self.first(h.flatten(1))))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 2, 4, 4, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(count)
    ]


def start(name, seed=0, frozen=()):
    torch.manual_seed(seed)
    network = Net()
    for layer in frozen:
        network.get_submodule(layer).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    # balanced, for scores that want every class
    data = [(torch.randn(8, 2, 4, 4, generator=generator), torch.arange(8) % 4) for _ in range(2)]
    return Training(
        row(name),
        network,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4),
        steps=STEPS,
        epoch_steps=EPOCH,
        batches=data,
        samples=64,
        generator=torch.Generator().manual_seed(seed),
    )


def train_round(training, first=0, last=None):
    data = batches(STEPS, seed=training.round)
    for x, y in data[first : training.steps if last is None else last]:
        training.optimizer.zero_grad()
        (F.cross_entropy(training.model(x), y) + training.penalty()).backward()
        training.optimizer.step()
        yield


def run(training):
    for _ in training.rounds():
        for _ in train_round(training):
            pass
    return training.finish()


@functools.cache
def trained(name):
    """The model at the end of a run, and which weights were invalid after which step, to look at alone."""
    training, broken = start(name), []
    for number in training.rounds():
        for step, _ in enumerate(train_round(training)):
            masked = masked_weights(training.model)
            broken += [(number, step, weight.name) for weight in masked if not is_valid(weight)]
    return training.finish(), broken


def is_valid(masked):
    """Whether a weight has a mask, and finite values that are 0 outside of it."""
    fits = masked.mask.dtype == torch.bool and masked.mask.shape == masked.weight.shape
    return fits and masked.is_enforced() and bool(masked.weight.isfinite().all())


def masks(model):
    return {masked.name: masked.mask.clone() for masked in masked_weights(model)}


def density(model):
    found = masks(model).values()
    return sum(int(mask.sum()) for mask in found) / sum(mask.numel() for mask in found)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_masked_after_every_step(name):
    model, broken = trained(name)
    assert broken == []
    check_invariant(model)
    assert [masked.name for masked in masked_weights(model)] == [
        "conv",
        "first",
        "last",
    ]  # no biases, no norms


@pytest.mark.parametrize("name", NAMES)
def test_ends_at_its_density(name):
    model, _ = trained(name)
    if name in DENSE:
        assert density(model) == 1
    elif name in FREE:
        assert 0.02 < density(model) < 0.9
    else:
        total = sum(mask.numel() for mask in masks(model).values())
        assert density(model) * total == pytest.approx(round(DENSITY * total))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_keep_their_values(name):
    training = start(name, frozen=["first"])
    torch.manual_seed(0)
    kept = Net().first
    first = run(training).get_submodule("first")
    assert torch.equal(first.weight, kept.weight * first.mask)
    assert torch.equal(first.bias, kept.bias)


@pytest.mark.parametrize("name", NAMES)
def test_is_deterministic_and_follows_its_generator(name):
    (one, _), same = trained(name), run(start(name))
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_resumes_bit_for_bit(name, at):
    first = start(name)
    stop_round = 0 if row(name).rounds is None else 1
    for number in first.rounds():
        for _ in train_round(first, last=min(at, first.steps) if number == stop_round else None):
            pass
        if number == stop_round:
            break
    saved = io.BytesIO()
    torch.save((first.model.state_dict(), first.state_dict(), torch.get_rng_state()), saved)
    second = start(name, seed=7)
    saved.seek(0)
    model, state, rng = torch.load(saved, weights_only=True)
    second.model.load_state_dict(model)
    second.load_state_dict(state)
    torch.set_rng_state(rng)
    for number in second.rounds():
        for _ in train_round(second, first=min(at, second.steps) if number == stop_round else 0):
            pass
    whole, resumed = trained(name)[0].state_dict(), second.finish().state_dict()
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_export_takes_it(name):
    model = copy.deepcopy(trained(name)[0]).double().eval()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact = sparsefx.export(model, (x,))
    torch.testing.assert_close(compact(x), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_given_is_left_alone(name):
    torch.manual_seed(3)
    net = Net()
    before = copy.deepcopy(net.state_dict())
    training = Training(
        row(name),
        net,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        steps=STEPS,
        epoch_steps=EPOCH,
        batches=[(torch.randn(8, 2, 4, 4), torch.arange(8) % 4)] * 2,
        samples=64,
    )
    for _ in train_round(training):
        pass
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in before.items())


SWAPS = [name for name in METHODS if METHODS[name].prune is not None and METHODS[name].densities is None]


@pytest.mark.parametrize("name", SWAPS)
def test_swaps_conserve_counts_at_every_step(name):
    training = start(name)
    counts = {key: int(mask.sum()) for key, mask in masks(training.model).items()}
    changed = False
    before = masks(training.model)
    for _ in train_round(training):
        after = masks(training.model)
        now = {key: int(mask.sum()) for key, mask in after.items()}
        if METHODS[name].redistribute == "none":
            assert now == counts
        assert sum(now.values()) == sum(counts.values())
        changed |= any(not torch.equal(after[key], before[key]) for key in after)
        before = after
    assert changed or name == "deep-r"  # whether a weight crosses 0 in so few steps is up to chance


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].score is not None])
def test_single_shot_masks_never_change(name):
    training = start(name)
    first = masks(training.model)
    for _ in train_round(training):
        assert all(torch.equal(mask, first[key]) for key, mask in masks(training.model).items())


@pytest.mark.parametrize("name", ["han", "lottery-ticket", "optimal-brain-damage", "layer-wise-obs"])
def test_masks_of_later_rounds_are_nested(name):
    training = start(name)
    before = masks(training.model)
    for _ in training.rounds():
        now = masks(training.model)
        assert all(not (now[key] & ~before[key]).any() for key in now)
        before = now
        for _ in train_round(training):
            pass
