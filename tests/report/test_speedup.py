"""The paper's estimates: their limits, their order, and the arithmetic by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import nn

import sparsefx
from sparsefx import ArgumentError
from sparsefx.masking.layers import mask_layer
from sparsefx.report.speedup import SpeedupEstimate, average_speedup

X = torch.randn(2, 4, 6, 6)


def conv_net() -> nn.Sequential:
    """Two convolutions whose sizes are multiples of 8, so that eighths are exact densities."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 3)
    )


def half_empty() -> nn.Sequential:
    """A convolution of density 1/4 that reads half of its input channels."""
    conv = nn.Conv2d(4, 2, 1, bias=False)
    mask_layer(conv, torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]).bool().view(2, 4, 1, 1))
    return nn.Sequential(conv)


def test_a_dense_network_gains_nothing() -> None:
    estimate = sparsefx.estimate_speedup(conv_net(), (X,), repeats=1)
    assert estimate.sparse_by_time == 1
    assert estimate.dense_by_time == 1
    assert estimate.sparse_by_flops == 1
    assert estimate.dense_by_flops == 1


@properties(8)
@given(st.integers(1, 8))
def test_a_uniform_density_gains_its_inverse(eighths: int) -> None:
    model = sparsefx.sparsify(conv_net(), density=eighths / 8)
    estimate = sparsefx.estimate_speedup(model, (X,), repeats=1)
    assert estimate.sparse_by_flops == pytest.approx(8 / eighths)
    assert estimate.sparse_by_time == pytest.approx(8 / eighths)


@properties(10)
@given(st.floats(0.02, 1), st.integers(0, 100))
def test_skipping_weights_gains_no_less_than_skipping_channels(density: float, seed: int) -> None:
    model = sparsefx.sparsify(conv_net(), density, generator=torch.Generator().manual_seed(seed))
    estimate = sparsefx.estimate_speedup(model, (X,), repeats=1)
    assert estimate.sparse_by_flops >= estimate.dense_by_flops >= 1
    assert estimate.sparse_by_time >= estimate.dense_by_time >= 1


def test_by_hand() -> None:
    estimate = sparsefx.estimate_speedup(half_empty(), (X,), repeats=1)
    assert (estimate.sparse_by_flops, estimate.dense_by_flops) == (4, 2)
    assert set(estimate.seconds) == {"0"}
    assert estimate.seconds["0"] > 0


def test_activations_scale_both_estimates() -> None:
    x = torch.ones(2, 4, 3, 3)
    x[:, 0] = 0
    x[:, 1, 0] = 0
    estimate = sparsefx.estimate_speedup(half_empty(), (x,), activations=True, repeats=1)
    nonzero = (2 + 2 / 3) / 4
    assert estimate.sparse_by_flops == pytest.approx(4 / nonzero)
    assert estimate.dense_by_flops == pytest.approx(2 / 0.75)


class Shared(nn.Module):
    """Calls one convolution twice and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(2, 2, 1, bias=False)
        self.never = nn.Conv2d(2, 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(x) + self.twice(torch.ones_like(x))


def test_calls_of_one_convolution_are_averaged_and_none_does_not_count() -> None:
    x = torch.ones(1, 2, 2, 2)
    x[:, 0] = 0
    estimate = sparsefx.estimate_speedup(Shared(), (x,), activations=True, repeats=1)
    assert estimate.sparse_by_flops == pytest.approx(1 / 0.75)
    assert estimate.dense_by_flops == pytest.approx(1 / 0.75)
    assert estimate.seconds["never"] == 0


def test_the_mean_over_training() -> None:
    early = SpeedupEstimate(4.0, 2.0, 6.0, 1.0, {"conv": 0.1})
    late = SpeedupEstimate(8.0, 3.0, 7.0, 2.0, {"conv": 0.3})
    assert average_speedup([early, late]).as_dict() == {
        "sparse_by_time": 6.0,
        "dense_by_time": 2.5,
        "sparse_by_flops": 6.5,
        "dense_by_flops": 1.5,
        "seconds": {"conv": pytest.approx(0.2)},
    }
    with pytest.raises(ArgumentError, match="estimates is empty; pass at least one"):
        average_speedup([])


def test_linear_layers_do_not_count() -> None:
    model = sparsefx.sparsify(conv_net(), density=0.1, dense=nn.Conv2d)
    assert sparsefx.estimate_speedup(model, (X,), repeats=1).sparse_by_flops == 1


def test_an_empty_network_gains_without_bound() -> None:
    model = half_empty()
    with torch.no_grad():
        model[0].mask.zero_()
        model[0].weight.zero_()
    assert sparsefx.estimate_speedup(model, (X,), repeats=1).dense_by_flops == math.inf


def test_a_model_without_convolutions() -> None:
    with pytest.raises(ArgumentError, match="model Sequential has no convolution to estimate a speed-up for"):
        sparsefx.estimate_speedup(nn.Sequential(nn.Linear(2, 2)), (torch.randn(1, 2),))


def test_the_printed_table() -> None:
    lines = str(sparsefx.estimate_speedup(half_empty(), (X,), repeats=1)).splitlines()
    assert lines[0].split() == ["estimate", "by", "run", "time", "by", "FLOPs"]
    assert lines[2].split() == ["sparse", "convolution", "4.00x", "4.00x"]
    assert lines[3].split()[-2:] == ["2.00x", "2.00x"]
