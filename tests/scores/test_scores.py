"""What every score of the table keeps to, on every kind of model."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import mask_layers
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.masking.sparsify import sparsify
from sparsefx.scores import SCORES, ScoringContext, magnitude, random

NAMES = sorted(SCORES)
NEED_DATA = sorted(SCORES.keys() - {"magnitude", "random"})


class Tied(nn.Module):
    """One weight in two layers, and an activation that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x), inplace=True))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2, stride=2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


SHAPES = {mlp: (6,), conv_net: (2, 6, 6), Tied: (6,)}


def context_of(make, **options) -> ScoringContext:
    torch.manual_seed(0)
    model = sparsify(make(), density=0.8)
    batches = [(torch.randn(6, *SHAPES[make]), torch.arange(6) % 3) for _ in range(2)]
    return ScoringContext(model, batches, generator=torch.Generator().manual_seed(1), **options)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    parameters = {f"grad of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.clone() for k, v in {**model.state_dict(), **parameters}.items()}


@pytest.mark.parametrize("make", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_finite_and_real_and_leaves_the_model_alone(name, make):
    context = context_of(make)
    model = context.model
    context.loss(model(context.batches[0][0]), context.batches[0][1]).backward()
    model.get_submodule("1" if make is not Tied else "first").eval()
    frozen = masked_weights(model)[0].weight.requires_grad_(False)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    gradients, random_state = [p.grad for p in model.parameters()], torch.get_rng_state()

    with torch.no_grad():
        scores = SCORES[name](context)

    layers = masked_weights(model)
    assert scores.keys() == {layer.name for layer in layers}
    for layer in layers:
        assert scores[layer.name].shape == layer.mask.shape
        assert scores[layer.name].dtype.is_floating_point
        assert scores[layer.name].isfinite().all()
        assert not scores[layer.name].requires_grad
        assert scores[layer.name][layer.mask].unique().numel() > 1
    after = snapshot(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert not frozen.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_repeats_itself_and_sees_through_a_wrapper(name):
    one, other = context_of(conv_net), context_of(conv_net)
    compiled = ScoringContext(
        torch.compile(other.model, backend="eager"), other.batches, generator=other.generator
    )
    scores, again = SCORES[name](one), SCORES[name](compiled)
    assert scores.keys() == again.keys()
    assert all(torch.equal(scores[key], again[key]) for key in scores)


@pytest.mark.parametrize("name", sorted(SCORES.keys() - {"random", "magnitude", "layerwise_obs"}))
def test_an_inactive_weight_is_worth_nothing(name):
    context = context_of(mlp)
    scores = SCORES[name](context)
    assert all(not scores[layer.name][~layer.mask].any() for layer in masked_weights(context.model))


@pytest.mark.parametrize("name", NEED_DATA)
def test_a_score_says_that_it_needs_data(name):
    with pytest.raises(ArgumentError, match=r"batches is empty"):
        SCORES[name](ScoringContext(mask_layers(mlp())))


def test_an_iterator_is_refused():
    with pytest.raises(ArgumentError, match="batches is a generator, which can be gone through only once"):
        ScoringContext(mlp(), (pair for pair in [(torch.ones(1), torch.ones(1))]))


def test_magnitude_by_hand():
    model = mask_layers(nn.Linear(3, 1), density=1)
    model.load_state_dict({"weight": torch.tensor([[1.0, -2.0, 0.0]]), "bias": torch.zeros(1)}, strict=False)
    assert magnitude(ScoringContext(model))["weight"].tolist() == [[1.0, 2.0, 0.0]]


def test_random_is_uniform_and_follows_its_generator():
    model = mask_layers(nn.Linear(100, 100))
    draw = [
        random(ScoringContext(model, generator=torch.Generator().manual_seed(s)))["weight"] for s in (0, 0, 1)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert draw[0].mean().item() == pytest.approx(0.5, abs=0.012)  # 4 standard deviations
    assert draw[0].unique().numel() == 10_000


def test_a_scratch_copy_is_in_the_mode_asked_for_and_can_be_ruined():
    context = context_of(conv_net)
    expected = copy.deepcopy(context.model.state_dict())
    for mode in (True, False):
        with context.scratch(training=mode) as model:
            assert all(module.training is mode for module in model.modules())
            for parameter in model.parameters():
                parameter.data.zero_()
    assert all(torch.equal(value, expected[key]) for key, value in context.model.state_dict().items())
