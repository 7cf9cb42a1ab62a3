"""Diagonals of the Hessian against explicit derivatives, and Optimal Brain Damage by hand."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from helpers import mask_layers
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.masking.sparsify import sparsify
from sparsefx.scores import ScoringContext, curvature, optimal_brain_damage
from sparsefx.scores.curvature import CURVATURES, fisher, gauss_newton, hutchinson


def half_squared(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().flatten(1).sum(dim=1).mean()


class Shared(nn.Module):
    """A layer used twice, one of whose uses is at many positions, and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve, self.mix, self.head = (
            nn.Conv1d(2, 4, 3, groups=2, padding=1),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convolve(x), inplace=True).transpose(1, 2)
        return self.head(torch.tanh(self.mix(self.mix(x).mean(dim=1))))


class Twice(nn.Module):
    """A layer used twice, at one position each time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(x)))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 2, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


SHAPES = {mlp: (4,), conv_net: (2, 4, 4), Shared: (2, 5), Twice: (4,)}


def setting(make) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = sparsify(make(), density=0.8).double().eval()
    return model, torch.randn(5, *SHAPES[make], dtype=torch.float64), torch.arange(5) % 3


def targets_of(loss, labels: Tensor) -> Tensor:
    return labels if loss is F.cross_entropy else F.one_hot(labels, 3).double()


def loss_of_one(loss, target: Tensor, output: Tensor) -> Tensor:
    return loss(output[None], target[None])


def explicit(model: nn.Module, x: Tensor, y: Tensor, loss, kind: str) -> dict[str, Tensor]:
    """The diagonals example by example, by full Jacobians and Hessians."""
    found = {}
    for layer in masked_weights(model):
        name = next(name for name, p in model.named_parameters() if p is layer.weight)
        total = torch.zeros_like(layer.weight).flatten()
        for one, target in zip(x, y, strict=True):

            def output(weight: Tensor, one: Tensor = one, name: str = name) -> Tensor:
                return functional_call(model, {name: weight}, (one[None],))[0]

            weight = layer.weight.detach()
            slopes = jacobian(output, weight).flatten(1)
            by_output = partial(loss_of_one, loss, target)
            if kind == "gauss-newton":
                total += (slopes.T @ hessian(by_output, output(weight)) @ slopes).diagonal()
            else:
                total += (jacobian(by_output, output(weight)) @ slopes).square()
        found[layer.name] = (total / len(x)).view_as(layer.weight)
    return found


@pytest.mark.parametrize("loss", [F.cross_entropy, half_squared])
@pytest.mark.parametrize("kind", ["gauss-newton", "fisher"])
@pytest.mark.parametrize("make", SHAPES)
def test_diagonals_are_those_of_explicit_jacobians(make, kind, loss):
    model, x, labels = setting(make)
    y = targets_of(loss, labels)
    found = CURVATURES[kind](ScoringContext(model, [(x[:2], y[:2]), (x[2:], y[2:])], loss), model)
    expected = explicit(model, x, y, loss, kind)
    assert found.keys() == expected.keys()
    for name, diagonal in expected.items():
        torch.testing.assert_close(found[name], diagonal)


def test_gauss_newton_is_the_hessian_where_the_model_is_linear():
    torch.manual_seed(0)
    model = mask_layers(nn.Linear(4, 3), density=0.7).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight, model.bias), y)

    exact = hessian(loss, model.weight.detach()).view(12, 12).diagonal().view(3, 4)
    torch.testing.assert_close(gauss_newton(ScoringContext(model, [(x, y)]), model)["weight"], exact)


def test_the_linear_case_by_hand():
    model = mask_layers(nn.Linear(2, 2, bias=False), density=1)
    model.weight.data = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    batch = (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 2))
    context = ScoringContext(model, [batch], half_squared)
    assert gauss_newton(context, model)["weight"].tolist() == [[5, 2], [5, 2]]  # mean of x_j^2
    assert optimal_brain_damage(context)["weight"].tolist() == [[2.5, 4], [0, 16]]


@pytest.mark.parametrize("curvature", ["gauss-newton", "hutchinson"])
def test_on_a_diagonal_quadratic_the_saliency_is_the_loss_that_removal_costs(curvature):
    torch.manual_seed(0)
    model = mask_layers(nn.Linear(4, 3, bias=False), density=1).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64))
    y = model(x).detach()  # converged: the loss is 0
    scores = optimal_brain_damage(ScoringContext(model, [(x, y)], half_squared), curvature=curvature)[
        "weight"
    ]
    for position, score in enumerate(scores.flatten()):
        old = model.weight.data.clone()
        model.weight.data.view(-1)[position] = 0
        assert half_squared(model(x), y).item() == pytest.approx(float(score))
        model.weight.data = old


def test_hutchinson_averages_to_the_diagonal_over_all_signs(monkeypatch):
    torch.manual_seed(0)
    model = mask_layers(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), density=1).double()
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 0])
    context = ScoringContext(model, [(x[:1], y[:1]), (x[1:], y[1:])])
    draws = (draw for both in itertools.product([1.0, -1.0], repeat=8) for draw in (both[:4], both[4:]))
    signs = (torch.tensor(draw, dtype=torch.float64).view(2, 2) for draw in draws)
    monkeypatch.setattr(curvature, "_signs", lambda like, generator: next(signs))
    found = hutchinson(context, model, probes=2**8)

    def loss(weights: Tensor) -> Tensor:
        return F.cross_entropy(
            functional_call(model, {"0.weight": weights[0], "2.weight": weights[1]}, (x,)), y
        )

    exact = hessian(loss, torch.stack([model[0].weight.detach(), model[2].weight.detach()]))
    diagonal = exact.view(8, 8).diagonal().view(2, 2, 2)
    torch.testing.assert_close(torch.stack([found["0"], found["2"]]), diagonal)
    assert (diagonal < 0).any()


def test_random_signs_are_signs_of_the_generator():
    one, same, other = (
        curvature._signs(torch.ones(40, 50), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert one.abs().eq(1).all()
    assert one.mean().abs() < 0.09  # 4 standard deviations
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_negative_curvature_counts_as_none():
    model = mask_layers(nn.Linear(2, 1), density=1)
    model.weight.data = torch.tensor([[2.0, 3.0]])

    def mine(context, scratch):
        return {"weight": torch.tensor([[-1.0, 4.0]])}

    assert optimal_brain_damage(ScoringContext(model), curvature=mine)["weight"].tolist() == [[0, 18]]


def test_hutchinson_takes_what_the_exact_ways_cannot_read():
    model = mask_layers(nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Tanh(), nn.Flatten()), density=1)
    context = ScoringContext(model, [(torch.randn(4, 2, 3), torch.arange(4))])
    for kind in ("gauss-newton", "fisher"):
        with pytest.raises(ArgumentError, match=r"layer '0' is a MaskedConvTranspose1d; .*'hutchinson'"):
            optimal_brain_damage(context, curvature=kind)
    assert optimal_brain_damage(context, curvature=partial(hutchinson, probes=2))["0"].any()


def test_examples_that_are_not_in_the_first_dimension_are_noticed():
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.movedim(0, 1)[:2, :1].flatten(0, 1)).sum(dim=0).expand(len(x), 3)

    model = mask_layers(Sequence(), density=1)
    with pytest.raises(ArgumentError, match="a layer reads 2 rows for 3 examples"):
        fisher(ScoringContext(model, [(torch.randn(3, 4, 2), torch.arange(3))]), model)


def test_an_unknown_curvature_gets_the_nearest():
    context = ScoringContext(mask_layers(mlp()), [(torch.randn(2, 4), torch.arange(2))])
    with pytest.raises(ArgumentError, match="curvature='gauss_newton' is not known; did you mean"):
        optimal_brain_damage(context, curvature="gauss_newton")


def test_half_precision_has_a_curvature():
    torch.manual_seed(0)
    net = sparsify(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), 1.0)
    batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    whole = optimal_brain_damage(ScoringContext(net, batches))
    half = optimal_brain_damage(ScoringContext(net.bfloat16(), [(x.bfloat16(), y) for x, y in batches]))
    for name, scores in whole.items():
        torch.testing.assert_close(half[name].float(), scores, rtol=0.2, atol=1e-3)
