"""Sparse variational dropout: the divergence's values, the noise's variance, what is pruned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.regularisers import VariationalDropout
from sparsefx.regularisers.variational_dropout import kl_divergence


def method_of(layer: nn.Module, **options: Any) -> tuple[nn.Module, VariationalDropout]:
    model = sparsefx.sparsify(nn.Sequential(layer).double(), density=1.0)
    return model, VariationalDropout(model, samples=10, **options)


def method_weight(model: nn.Module) -> Tensor:
    """The only masked weight, without its gradient."""
    return masked_weights(model)[0].weight.detach()


@pytest.mark.parametrize(
    ("log_alpha", "expected"),
    [(-8.0, 4.63590), (-3.0, 2.11559), (0.0, 0.43124), (3.0, 0.02542), (8.0, 0.000168)],
)
def test_divergence_at_the_published_constants(log_alpha: float, expected: float) -> None:
    actual = float(kl_divergence(torch.tensor(log_alpha, dtype=torch.float64)))
    assert actual == pytest.approx(expected, abs=5e-6)


def test_divergence_is_positive_and_falls() -> None:
    values = kl_divergence(torch.linspace(-8, 8, 1001, dtype=torch.float64))
    assert bool((values > 0).all())
    assert bool((values.diff() < 0).all())


def test_log_alpha_is_clipped() -> None:
    model, method = method_of(nn.Linear(3, 1), log_variance=-2.0)
    with torch.no_grad():
        masked_weights(model)[0].weight.copy_(torch.tensor([[1e-9, 1.0, 100.0]]))
    (log_alpha,) = method.log_alphas()
    assert log_alpha.tolist()[0] == pytest.approx([8, -2, -8], abs=1e-6)


def test_penalty_is_the_divergence_over_the_samples_times_its_weight() -> None:
    model, method = method_of(nn.Linear(2, 2), log_variance=0.0, warm_up=(0.25, 0.75))
    nn.init.ones_(masked_weights(model)[0].weight)
    expected = {0.0: 0.0, 0.25: 0.0, 0.5: 0.5, 0.75: 1.0, 1.0: 1.0}
    for progress, weight in expected.items():
        method.after_step(progress)
        assert method.penalty_weight == weight
        assert method.penalty().item() == pytest.approx(weight * 4 * 0.43124 / 10, abs=1e-5)


def test_without_warm_up_the_penalty_counts_from_the_start() -> None:
    _, method = method_of(nn.Linear(2, 2), warm_up=(0.0, 0.0))
    assert method.penalty_weight == 1.0


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 3), (2, 6)),
    "conv": (nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=2), (2, 4, 5, 5)),
    "reflected": (nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5)),
    "transposed": (nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2, output_padding=1), (2, 2, 3, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_noise_has_the_mean_and_variance_of_random_weights(kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    model, method = method_of(layer, log_variance=-4.0)
    with torch.no_grad():
        method.log_variances[0].add_(torch.randn_like(method.log_variances[0]))
    x = torch.randn(shape, dtype=torch.float64)
    draws, deviation = 3000, (0.5 * method.log_variances[0]).exp()
    with torch.no_grad():
        noisy = model.train()(x.repeat(draws, *[1] * (x.dim() - 1))).unflatten(0, (draws, len(x)))
    method.detach()

    def output(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"0.weight": weight}, (x,))

    slopes = torch.func.jacrev(output)(method_weight(model))  # the output is linear in the weight
    variance = (slopes * deviation).square().flatten(noisy.dim() - 1).sum(-1) + 1e-8
    # Standard errors: sqrt(variance / draws) of a mean, sqrt(2 / draws) = 2.6% of a variance; the largest of
    # a few hundred positions lies within 5 of them.
    mean = output(method_weight(model))
    assert ((noisy.mean(0) - mean) / (variance / draws).sqrt()).abs().max() < 5
    assert (noisy.var(0) / variance - 1).abs().max() < 0.13


def test_the_variance_is_exact_on_one_weight() -> None:
    model, _ = method_of(nn.Linear(1, 1, bias=False), log_variance=2 * np.log(3.0))
    x = torch.tensor([[2.0]], dtype=torch.float64)
    torch.manual_seed(1)
    output = model.train()(x)
    torch.manual_seed(1)
    noise = torch.randn(1, 1, dtype=torch.float64)
    expected = 2 * masked_weights(model)[0].weight + np.sqrt(4 * 9 + 1e-8) * noise
    torch.testing.assert_close(output, expected)


def test_evaluation_is_the_mean_when_nothing_is_pruned() -> None:
    torch.manual_seed(0)
    model, method = method_of(nn.Conv2d(2, 3, 3), threshold=1e9)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    expected = model.eval()(x)
    method.detach()
    assert torch.equal(model(x), expected)


def test_weights_above_the_threshold_are_pruned() -> None:
    model, method = method_of(nn.Linear(4, 1), log_variance=0.0)
    weight = masked_weights(model)[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[np.exp(-1.49), -np.exp(-1.51), 0.0, 2.0]]))  # log alpha 2.98, 3.02, large
    method.decide()
    assert masked_weights(model)[0].mask.tolist() == [[True, False, False, True]]
    assert weight[0, 3].item() == 2


@pytest.mark.parametrize("clip", [True, False])
def test_clipping_in_training_leaves_out_the_mean_and_the_gradient_but_not_the_noise(clip: bool) -> None:
    model, method = method_of(nn.Linear(2, 1, bias=False), log_variance=0.0, train_clip=clip, warm_up=(0, 0))
    weight = masked_weights(model)[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[0.1, 2.0]]))  # log alpha 4.6 and -1.4
    x = torch.ones(1, 2, dtype=torch.float64)
    torch.manual_seed(0)
    output = model.train()(x)
    torch.manual_seed(0)
    noise = torch.randn(1, 1, dtype=torch.float64) * np.sqrt(2 + 1e-8)
    torch.testing.assert_close(output - noise, x.new_tensor([[2.0 if clip else 2.1]]))
    method.penalty().backward()
    gradient = method.log_variances[0].grad
    assert gradient is not None
    assert (gradient != 0).tolist() == [[not clip, True]]


def test_arguments() -> None:
    with pytest.raises(ArgumentError, match="warm_up="):
        method_of(nn.Linear(2, 2), warm_up=(0.5, 0.2))
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(2, 2)), density=1.0)
    with pytest.raises(ArgumentError, match="samples=0"):
        VariationalDropout(model, samples=0)


def digits() -> tuple[Tensor, Tensor]:
    data = np.load(Path(os.environ["SPARSEFX_DATA"]) / "mnist.npz")
    images = torch.from_numpy(data["x_train"][:10000]).float().div(255).sub(0.1307).div(0.3081)
    return images.flatten(1), torch.from_numpy(data["y_train"][:10000]).long()


@pytest.mark.slow
@pytest.mark.skipif("SPARSEFX_DATA" not in os.environ, reason="SPARSEFX_DATA names no folder with mnist.npz")
def test_lenet_becomes_sparse_on_digits() -> None:
    torch.manual_seed(0)
    x, y = digits()
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    model = sparsefx.sparsify(net, density=1.0)
    method = VariationalDropout(model, samples=len(x), warm_up=(0.1, 0.3))
    optimizer = torch.optim.Adam([{"params": list(model.parameters())}, *method.parameter_groups()], lr=1e-3)
    assert method.density() > 0.8
    steps = 20 * 100
    for step in range(steps):
        chosen = torch.randint(len(x), (100,))
        optimizer.zero_grad()
        (F.cross_entropy(model(x[chosen]), y[chosen]) + method.penalty()).backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
    method.decide()
    accuracy = (model.eval()(x).argmax(1) == y).float().mean()
    density = [masked.density for masked in masked_weights(model)]
    assert accuracy > 0.95
    assert density[0] < 0.3
