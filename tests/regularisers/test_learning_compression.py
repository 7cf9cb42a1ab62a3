"""Learning-compression: C steps are projections, the schedule, weights that end at their target."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, nn

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.regularisers import C_STEPS, LearningCompression

small = st.lists(st.floats(-3, 3, width=16), min_size=2, max_size=6).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def model_of(*values: float) -> nn.Module:
    """A model whose only masked weight is the row ``values``."""
    layer = nn.Linear(len(values), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values]))
    return sparsefx.sparsify(nn.Sequential(layer), density=1.0)


def weight_of(model: nn.Module) -> nn.Parameter:
    return masked_weights(model)[0].weight


@properties()
@given(small, st.floats(0.05, 1))
def test_the_l0_constraint_is_the_nearest_of_all_sparse_vectors(values: Tensor, density: float) -> None:
    count = round(density * len(values))
    nearest = min(
        float((values - values * torch.tensor(chosen)).square().sum())
        for chosen in itertools.product([0.0, 1.0], repeat=len(values))
        if sum(chosen) <= count
    )
    projected = C_STEPS["l0_constraint"](values, density, 1.0)
    assert int((projected != 0).sum()) <= count
    assert float((values - projected).square().sum()) == pytest.approx(nearest, abs=1e-12)


@properties()
@given(small, st.floats(0.01, 3), st.floats(0.1, 3))
def test_the_l0_penalty_is_the_least_of_all_supports(values: Tensor, alpha: float, mu: float) -> None:
    def objective(theta: Tensor) -> float:
        return alpha * int((theta != 0).sum()) + mu / 2 * float((theta - values).square().sum())

    least = min(
        objective(values * torch.tensor(chosen))
        for chosen in itertools.product([0.0, 1.0], repeat=len(values))
    )
    assert objective(C_STEPS["l0_penalty"](values, alpha, mu)) == pytest.approx(least, abs=1e-9)


@properties()
@given(st.floats(-3, 3), st.floats(0.01, 3), st.floats(0.1, 3))
def test_the_l1_penalty_is_the_least_on_a_grid(value: float, alpha: float, mu: float) -> None:
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    objective = alpha * grid.abs() + mu / 2 * (grid - value).square()
    theta = C_STEPS["l1_penalty"](torch.tensor([value], dtype=torch.float64), alpha, mu)
    assert float((theta - grid[objective.argmin()]).abs()) <= 1e-3


@properties()
@given(small, st.floats(0.1, 4))
def test_the_l1_projection_meets_the_conditions_of_the_nearest_point(values: Tensor, radius: float) -> None:
    projected = C_STEPS["l1_constraint"](values, radius, 1.0)
    if float(values.abs().sum()) <= radius:
        assert torch.equal(projected, values)
        return
    assert float(projected.abs().sum()) == pytest.approx(radius)
    # Nearest to values among all t of the ball: (values - projected) . (t - projected) <= 0 at its corners.
    residual = values - projected
    assert float(radius * residual.abs().max() - residual @ projected) <= 1e-9


def test_l1_projection_by_hand() -> None:
    values = torch.tensor([3.0, -1.0, 0.5, 0.0])
    assert C_STEPS["l1_constraint"](values, 3.0, 1.0).tolist() == [2.5, -0.5, 0, 0]
    assert C_STEPS["l1_constraint"](values, 1.0, 1.0).tolist() == [1, 0, 0, 0]


def test_ties_go_to_the_lowest_index_across_layers() -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), density=1.0)
    for masked in masked_weights(model):
        nn.init.constant_(masked.weight, -0.5)
    target = LearningCompression(model, level=3 / 8).target
    assert target.tolist() == [-0.5, -0.5, -0.5, 0, 0, 0, 0, 0]


def test_two_steps_by_hand() -> None:
    model = model_of(2.0, -1.0)
    method = LearningCompression(model, level=0.5, c_steps=2, mu=0.5, growth=2.0, first=1.0)
    assert method.target.tolist() == [2, 0]
    assert method.penalty().item() == 0.25  # 0.5 / 2 * 1
    assert method.mu == 0.5
    with torch.no_grad():
        weight_of(model).copy_(torch.tensor([[1.0, -3.0]]))
    method.after_step(0.5)
    assert method.target.tolist() == [0, -3]
    assert method.multipliers.tolist() == [-0.5, 0]  # 0 - 0.5 * (1 - 0)
    assert method.mu == 1.0
    assert method.penalty().item() == 0.5 * (1 + 0.5) ** 2
    method.after_step(1.0)  # compresses (1.5, -3) with mu 1
    assert method.target.tolist() == [0, -3]
    assert method.multipliers.tolist() == [-1.5, 0]
    assert method.mu == 2.0


def test_without_multipliers_it_is_a_quadratic_penalty() -> None:
    model = model_of(2.0, -1.0)
    method = LearningCompression(model, level=0.5, c_steps=1, mu=0.5, first=1.0, augmented=False)
    method.after_step(1.0)
    assert method.multipliers.tolist() == [0, 0]
    assert method.penalty().item() == pytest.approx(0.5 * 0.5 * 1.1)


@pytest.mark.parametrize(("first", "c_steps"), [(1.0, 4), (2.0, 4), (2.0, 39), (0.5, 3)])
def test_c_steps_are_spread_over_training_the_first_l_step_being_longer(first: float, c_steps: int) -> None:
    method = LearningCompression(model_of(1.0, 2.0), c_steps=c_steps, first=first, mu=1.0, growth=2.0)
    total = 1000
    changes = []
    for step in range(1, total + 1):
        before = method.mu
        method.after_step(step / total)
        if method.mu != before:
            assert method.mu == 2 * before
            changes.append(step)
    assert method.mu == 2.0**c_steps
    unit = total / (first + c_steps - 1)
    assert changes == [math.ceil(unit * (first + k) - 1e-6) for k in range(c_steps)]


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("c_step", ["l0_constraint", "l0_penalty", "l1_penalty"])
def test_weights_go_to_their_target(augmented: bool, c_step: str) -> None:
    torch.manual_seed(0)
    wanted = torch.randn(1, 10, dtype=torch.float64)
    model = model_of(*[0.0] * 10)
    with torch.no_grad():
        weight_of(model).copy_(wanted)
    method = LearningCompression(
        model, c_step=c_step, level=0.3, c_steps=30, mu=0.1, growth=1.4, augmented=augmented
    )
    start = method.distance()
    for step in range(900):
        loss = 0.5 * (weight_of(model) - wanted).square().sum() + method.penalty()
        rate = method.clip_rate(0.3)
        (gradient,) = torch.autograd.grad(loss, [weight_of(model)])
        with torch.no_grad():
            weight_of(model).sub_(rate * gradient)
        method.after_step((step + 1) / 900)
    assert start > 0.1
    assert method.distance() < 1e-3 * start
    target = method.target.clone()
    method.decide()
    assert torch.equal(weight_of(model).flatten(), target)
    if c_step == "l0_constraint":
        assert int((weight_of(model) != 0).sum()) == 3
        largest = wanted.abs().topk(3).indices.sort().values
        assert torch.equal(weight_of(model).nonzero()[:, 1], largest.flatten())


def test_the_learning_rate_is_clipped_at_one_over_mu() -> None:
    method = LearningCompression(model_of(1.0, 2.0), c_steps=2, mu=2.0, growth=4.0)
    assert method.clip_rate(0.1) == 0.1
    assert method.clip_rate(0.9) == 0.5
    method.after_step(1.0)
    assert method.mu == 32
    assert method.clip_rate(0.1) == 1 / 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c_step": "l0_constrain"}, "did you mean 'l0_constraint'"),
        ({"level": 1.5}, "level=1.5 is a density"),
        ({"level": 0.0}, "level=0.0"),
        ({"c_steps": 0}, "c_steps=0"),
        ({"mu": -1.0}, "mu=-1.0"),
        ({"growth": 0.9}, "growth=0.9"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LearningCompression(model_of(1.0, 2.0), **options)
