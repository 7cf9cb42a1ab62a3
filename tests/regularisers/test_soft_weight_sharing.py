"""Soft weight-sharing: the mixture against torch.distributions, merging, quantisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.regularisers import Mixture, SoftWeightSharing


def method_of(**options: Any) -> tuple[nn.Module, SoftWeightSharing]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4)).double()
    sparse = sparsefx.sparsify(model, density=1.0)
    method = SoftWeightSharing(sparse, samples=100, **options)
    with torch.no_grad():
        method.logits.normal_()
        method.log_precisions.add_(torch.randn_like(method.log_precisions))
    return sparse, method


def mixture_of(proportions: list[float], means: list[float], deviations: list[float]) -> Mixture:
    parts = [torch.tensor(part, dtype=torch.float64) for part in (proportions, means, deviations)]
    return Mixture(parts[0].log(), parts[1], -2 * parts[2].log())


def explicit(mixture: Mixture) -> distributions.MixtureSameFamily:
    deviations = (-0.5 * mixture.log_precisions).exp()
    return distributions.MixtureSameFamily(
        distributions.Categorical(logits=mixture.log_proportions),
        distributions.Normal(mixture.means, deviations),
    )


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([masked.weight.flatten() for masked in masked_weights(model)])


def test_the_log_prior_is_that_of_an_explicit_mixture() -> None:
    model, method = method_of(components=7)
    precisions = method.log_precisions.exp()
    expected = explicit(method.mixture()).log_prob(weights_of(model)).sum()
    for j, precision in enumerate(precisions):
        a, b = (5000.0, 2.0) if j == 0 else (250.0, 0.1)
        gamma = distributions.Gamma(
            torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        )
        expected = expected + gamma.log_prob(precision) - (a * math.log(b) - math.lgamma(a))
    torch.testing.assert_close(method.log_prior(), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(method.penalty(), -0.003 / 100 * expected, rtol=1e-10, atol=0)


def test_a_far_value_has_a_finite_log_density() -> None:
    mixture = mixture_of([0.5, 0.5], [0.0, 1.0], [0.01, 0.01])
    value = torch.tensor([50.0], dtype=torch.float64)
    assert float(mixture.log_prob(value)) == pytest.approx(float(explicit(mixture).log_prob(value)))


def test_the_total_and_its_gradient_are_those_of_each_value() -> None:
    torch.manual_seed(0)
    values = torch.randn(20_001, dtype=torch.float64).mul(0.3).requires_grad_()  # some blocks and a rest
    values.data[0] = 40.0
    parts = [torch.randn(5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    mixture = Mixture(parts[0].log_softmax(0), *parts[1:])
    one, other = mixture.log_prob(values).sum(), mixture.total_log_prob(values)
    torch.testing.assert_close(other, one)
    for factor in (1.0, -0.3):
        expected = torch.autograd.grad(factor * one, (values, *parts), retain_graph=True)
        gradients = torch.autograd.grad(factor * other, (values, *parts), retain_graph=True)
        torch.testing.assert_close(gradients, expected)
    assert mixture.total_log_prob(values[:0]) == 0


def test_responsibilities_sum_to_one_and_follow_bayes() -> None:
    model, method = method_of(components=7)
    mixture, values = method.mixture(), weights_of(model)
    shares = mixture.responsibilities(values)
    torch.testing.assert_close(shares.sum(1), torch.ones_like(values))
    density = explicit(mixture).log_prob(values).exp()
    normal = distributions.Normal(mixture.means[3], (-0.5 * mixture.log_precisions[3]).exp())
    share = mixture.log_proportions[3].exp() * normal.log_prob(values).exp() / density
    torch.testing.assert_close(shares[:, 3], share)


def test_the_start_is_the_published_one() -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(3, 3)).double(), density=1.0)
    mixture = SoftWeightSharing(model, samples=10).mixture()
    proportions = mixture.log_proportions.exp()
    assert proportions[0].item() == pytest.approx(0.99)
    assert proportions[1:].tolist() == pytest.approx([0.01 / 15] * 15)
    assert mixture.means.tolist() == pytest.approx([0.0, *(0.6 * (k / 7 - 1) for k in range(15))])
    assert (-0.5 * mixture.log_precisions).exp().tolist() == pytest.approx([0.25] * 16)


def test_divergences_are_those_of_normals() -> None:
    mixture = mixture_of([0.5, 0.3, 0.2], [0.0, 1.0, -2.0], [1.0, 0.5, 2.0])
    normals = [
        distributions.Normal(mean, deviation)
        for mean, deviation in zip(mixture.means, (-0.5 * mixture.log_precisions).exp(), strict=True)
    ]
    expected = [[float(distributions.kl_divergence(p, q)) for q in normals] for p in normals]
    assert mixture.divergences().tolist() == [pytest.approx(row, abs=1e-12) for row in expected]


def test_alike_components_merge_and_others_stay() -> None:
    merged = mixture_of([0.5, 0.1, 0.1, 0.3], [0.0, 1.0, 1.0 + 1e-7, 2.0], [0.1, 0.2, 0.2, 0.3]).merged()
    assert merged.log_proportions.exp().tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert merged.means.tolist() == pytest.approx([0, 1 + 0.5e-7, 2], abs=1e-12)
    assert (-0.5 * merged.log_precisions).exp().tolist() == pytest.approx([0.1, 0.2, 0.3])
    apart = mixture_of([0.5, 0.5], [0.0, 0.001], [0.1, 0.1])
    assert len(apart.merged().means) == 2


def test_a_merge_weights_by_the_proportions() -> None:
    mixture = mixture_of([0.1, 0.3, 0.6], [0.0, 1.0, 5.0], [0.1, 0.2, 0.3])
    joined = mixture._joined(0, 1)
    assert joined.means.tolist() == pytest.approx([0.75, 5])
    precision = 0.25 / 0.01 + 0.75 / 0.04
    assert joined.log_precisions.exp().tolist() == pytest.approx([precision, 1 / 0.09])


def test_weights_take_the_mean_of_the_most_responsible_component() -> None:
    model, method = method_of(components=5, zero_proportion=0.3)
    before, mixture = weights_of(model).detach(), method.mixture()
    nearest = mixture.responsibilities(before).argmax(1)
    method.decide()
    after = weights_of(model)
    assert torch.equal(after, mixture.means[nearest])
    assert 1 < len(after.unique()) <= 5
    assert int((nearest == 0).sum()) == int((after == 0).sum())


def test_a_density_quantises_what_it_keeps_to_other_means() -> None:
    model, method = method_of(components=5, zero_proportion=0.9)
    means = method.means.detach().clone()
    method.decide(0.75)
    values = weights_of(model)
    assert int((values != 0).sum()) == round(0.75 * len(values))
    assert bool(torch.isin(values[values != 0], means).all())


def test_the_mean_nearest_to_zero_prunes_although_it_is_another_components() -> None:
    model, method = method_of(components=3, zero_proportion=0.001)
    with torch.no_grad():
        method.means.copy_(torch.tensor([0.0, 0.2]))
        method.log_precisions.fill_(8.0)
    method.decide()
    assert set(weights_of(model).tolist()) == {0.0, float(method.means[1].detach())}


def test_groups_have_the_rates_of_the_paper() -> None:
    _, method = method_of()
    rates = {id(p): group["lr"] for group in method.parameter_groups() for p in group["params"]}
    assert [rates[id(p)] for p in (method.means, method.log_precisions, method.logits)] == [1e-4, 3e-3, 3e-3]


def test_a_collapsed_mixture_is_refused() -> None:
    _, method = method_of(components=3)
    with torch.no_grad():
        method.means.zero_()
        method.log_precisions.zero_()
    with pytest.raises(ArgumentError, match=r"tau=0\.003"):
        method.decide()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 1}, "components=1"),
        ({"zero_proportion": 1.0}, "zero_proportion"),
        ({"tau": 0.0}, "tau=0.0"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        method_of(**options)
