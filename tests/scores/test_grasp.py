"""GraSP against an explicit Hessian, and its balanced batch."""

from __future__ import annotations

import pytest
import torch
from helpers import mask_layers
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.scores import ScoringContext, balanced_batch, grasp


def setting() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = mask_layers(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), density=0.8).double()
    return model, torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3


def explicit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """``w * (H g)`` with H as a matrix over all weights of both layers."""
    shapes = [layer.weight.shape for layer in (model[0], model[2])]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {f"{i}.weight": p.view(s) for i, p, s in zip((0, 2), parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, weights, (x,)) / temperature, y)

    flat = torch.cat(
        [model[0].weight.detach().flatten(), model[2].weight.detach().flatten()]
    ).requires_grad_()
    (slope,) = torch.autograd.grad(loss(flat), flat)
    return flat.detach() * (torch.autograd.functional.hessian(loss, flat.detach()) @ slope)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_grasp_is_the_weight_times_hessian_times_gradient(temperature, parts):
    model, x, y = setting()
    scores = grasp(
        ScoringContext(model, [(x[:2], y[:2]), (x[2:], y[2:])]), temperature=temperature, parts=parts
    )
    found = torch.cat([scores["0"].flatten(), scores["2"].flatten()])
    expected = explicit(model, x, y, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert (expected < 0).any()
    assert (expected > 0).any()


def test_removing_what_scores_high_slows_the_loss():
    model, x, y = setting()
    score = grasp(ScoringContext(model, [(x, y)]), temperature=1.0)["0"]

    def squared_slope() -> float:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return sum(float(layer.weight.grad.square().sum()) for layer in (model[0], model[2]))

    base = squared_slope()
    shrink = 1e-6
    for position in (score.argmax(), score.argmin()):
        weight = model[0].weight.data.view(-1)
        old = float(weight[position])
        weight[position] = old * (1 - shrink)
        change = (squared_slope() - base) / shrink
        weight[position] = old
        assert change == pytest.approx(-2 * float(score.view(-1)[position]), rel=1e-3)


def test_batch_statistics_are_used_in_training_mode():
    torch.manual_seed(0)
    model = mask_layers(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), density=1)
    batch = [(torch.randn(8, 3), torch.arange(8) % 3)]
    by_mode = [grasp(ScoringContext(model, batch), training=training)["0"] for training in (True, False)]
    assert not torch.allclose(*by_mode)


def test_linear_layers_drawn_anew_by_the_generator_keep_their_masks():
    model, x, y = setting()
    before = model[0].weight.clone()

    def scores(seed: int) -> torch.Tensor:
        context = ScoringContext(model, [(x, y)], generator=torch.Generator().manual_seed(seed))
        return grasp(context, reinitialise_linear=True)["0"]

    assert torch.equal(scores(0), scores(0))
    assert not torch.equal(scores(0), scores(1))
    assert not scores(0)[~model[0].mask].any()
    assert torch.equal(model[0].weight, before)


def test_a_balanced_batch_takes_turns_over_batches():
    labels = torch.tensor([2, 0, 0, 1, 2, 1, 0])
    batches = [(torch.arange(4.0), labels[:4]), (torch.arange(4.0, 7.0), labels[4:])]
    inputs, targets = balanced_batch(batches, per_class=2)
    assert targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert inputs.tolist() == [1, 3, 0, 2, 5, 4]


def test_a_class_that_is_too_small_is_named():
    with pytest.raises(ArgumentError, match=r"per_class=2 is more than batches has of class \[1\]"):
        balanced_batch([(torch.arange(3.0), torch.tensor([0, 1, 0]))], per_class=2)
