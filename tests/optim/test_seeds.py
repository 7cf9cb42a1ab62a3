"""What is random follows torch's generator, a seed or a generator that is given; nothing seeds itself."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_same
from torch import nn

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.integrations import sparse_optimizer
from sparsefx.masking.masks import masked_weights


def net():
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 4))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def train(model, optimizer, steps):
    for step in range(steps):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def by_training(**options):
    training = sparsefx.Training(
        sparsefx.method("set", density=0.2, every=2), net(), sgd, steps=6, epoch_steps=2, **options
    )
    first = masks(training.model)
    train(training.model, training.optimizer, 6)
    return first, masks(training.model)


def by_momentum(**options):
    model = masked_alike()
    optimizer = sparsefx.SparseMomentum(
        sgd(model.parameters()), model, cycles=5, every=1, grow="random", redistribute="none", **options
    )
    train(model, optimizer, 1)
    return [masks(model)]


def by_sparse_optimizer(**options):
    model = masked_alike()
    optimizer = sparse_optimizer(
        sgd(model.parameters()), model, "set", steps=10, epoch_steps=10, every=1, **options
    )
    train(model, optimizer, 1)
    return [masks(model)]


def by_sparsify(**options):
    return [masks(sparsefx.sparsify(net(), density=0.2, **options))]


def by_prune(**options):
    model = sparsefx.sparsify(net(), density=1.0)
    sparsefx.prune(model, 0.2, score="random", **options)
    return [masks(model)]


def masked_alike():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        return sparsefx.sparsify(net(), density=0.2)


def masks(model):
    return torch.cat([layer.mask.flatten() for layer in masked_weights(model)])


WAYS = {
    "Training": by_training,
    "SparseMomentum": by_momentum,
    "sparse_optimizer": by_sparse_optimizer,
    "sparsify": by_sparsify,
    "prune": by_prune,
}


def overlap(one, other):
    """Fraction of one's active positions that the other has too."""
    return float((one & other).sum() / one.sum())


@pytest.mark.parametrize("way", WAYS)
def test_torchs_seed_decides_by_default(way):
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(WAYS[way]())
    assert_same(results[0], results[1])
    kept_alike = 0.75 if way in ("SparseMomentum", "sparse_optimizer") else 0.35  # half stays in a cycle
    assert all(overlap(one, two) < kept_alike for one, two in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_seed_or_a_generator_decides_where_it_is_given(way):
    results = []
    for torchs, options in (
        (1, {"seed": 5}),
        (2, {"seed": 5}),
        (2, {"generator": torch.Generator().manual_seed(5)}),
        (2, {"seed": 6}),
    ):
        torch.manual_seed(torchs)
        before = torch.get_rng_state()
        if way in ("Training", "sparsify", "prune"):
            with torch.random.fork_rng(devices=()):  # these make their network first
                torch.manual_seed(0)
                results.append(WAYS[way](**options))
        else:
            results.append(WAYS[way](**options))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    assert not torch.equal(results[0][0], results[3][0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1, "generator": torch.Generator()}, "seed=1 and generator= are both given"),
        ({"seed": 1.5}, r"seed=1\.5 is not a whole number"),
        ({"seed": True}, "seed=True is not a whole number"),
        ({"seed": 2**64}, "seed=18446744073709551616 is not a whole number of 64 bits"),
        ({"generator": 3}, r"generator=3 is no torch\.Generator; pass seed="),
    ],
)
def test_what_is_no_seed_is_named(way, options, message):
    with pytest.raises(ArgumentError, match=message):
        WAYS[way](**options)


@pytest.mark.parametrize("name", ["seed", "generator"])
def test_a_method_has_no_seed(name):
    with pytest.raises(ArgumentError, match=f"{name}= is no part of a method; give it to what trains"):
        sparsefx.method("set", **{name: 1})


def test_two_optimizers_in_one_process_draw_differently():
    torch.manual_seed(0)
    one, other = by_momentum(), by_momentum()
    assert overlap(one[0], other[0]) < 0.75


def test_resuming_takes_the_saved_generator_whatever_the_seed():
    model = masked_alike()
    make = lambda net: sparsefx.SparseMomentum(  # noqa: E731
        sgd(net.parameters()), net, cycles=9, every=1, grow="random"
    )
    optimizer = make(model)
    train(model, optimizer, 2)
    torch.manual_seed(99)
    other = masked_alike()
    resumed = make(other)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net_, wrapper in ((model, optimizer), (other, resumed)):
        train(net_, wrapper, 3)
    assert_same(model.state_dict(), other.state_dict())
