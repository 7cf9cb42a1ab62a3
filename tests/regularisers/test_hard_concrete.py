"""L0 regularisation: the gates' distribution, the penalty, groups and their removal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights
from sparsefx.regularisers import HardConcrete
from sparsefx.regularisers.hard_concrete import hard_concrete, mean_gate, open_probability


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def method_of(*layers: nn.Module, **options: Any) -> tuple[nn.Module, HardConcrete]:
    torch.manual_seed(0)
    model = sparsefx.sparsify(nn.Sequential(*layers).double(), density=1.0)
    return model, HardConcrete(model, samples=10, **options)


def set_gates(method: HardConcrete, index: int, *values: float) -> None:
    with torch.no_grad():
        method.log_alphas[index].copy_(double(*values))


def test_the_gate_by_hand() -> None:
    gate = hard_concrete(double(0.0, 0.0, 0.0, 0.5), double(0.5, 0.05, 0.95, 0.3))
    s = 1 / (1 + math.exp(-(math.log(0.3 / 0.7) + 0.5) * 1.5))
    assert gate.tolist() == pytest.approx([0.5, 0, 1, 1.2 * s - 0.1])


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_gates_are_closed_and_open_as_often_as_the_formula_says(log_alpha: float) -> None:
    draws = 200_000
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gates = hard_concrete(torch.tensor(log_alpha, dtype=torch.float64), uniform)
    shift = 2 / 3 * math.log(0.1 / 1.1)
    closed = 1 / (1 + math.exp(log_alpha - shift))  # P(s-bar < 0)
    opened = 1 / (1 + math.exp(-log_alpha - shift))  # P(s-bar > 1), by symmetry
    error = 5 * math.sqrt(0.25 / draws)
    assert float((gates == 0).double().mean()) == pytest.approx(closed, abs=error)
    assert float((gates == 1).double().mean()) == pytest.approx(opened, abs=error)
    assert float(open_probability(double(log_alpha))) == pytest.approx(1 - closed)


def test_the_probability_at_zero_and_its_growth() -> None:
    probabilities = open_probability(torch.linspace(-4, 4, 101, dtype=torch.float64))
    assert probabilities[50].item() == pytest.approx(0.831822, abs=1e-6)
    assert bool((probabilities.diff() > 0).all())


def test_the_gate_of_test_time_is_zero_up_to_minus_log_eleven() -> None:
    edge = -math.log(11)
    assert edge == pytest.approx(-2.3979, abs=1e-4)
    gates = mean_gate(double(-5.0, edge - 1e-9, edge + 1e-6, 0.0, -edge + 1e-9))
    assert (gates == 0).tolist() == [True, True, False, False, False]
    assert gates[3:].tolist() == pytest.approx([0.5, 1], abs=1e-15)


def test_gradients_flow_through_gates_between_zero_and_one() -> None:
    log_alpha = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    hard_concrete(log_alpha, double(0.01, 0.5, 0.99)).sum().backward()
    assert log_alpha.grad is not None
    assert log_alpha.grad.tolist() == pytest.approx([0, 1.2 * 0.25 * 1.5, 0])


def test_the_penalty_by_hand() -> None:
    model, method = method_of(
        nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3), strength=[0.2, 0.5], weight_decay=0.1
    )
    for masked in masked_weights(model):
        nn.init.constant_(masked.weight, 2.0)
    set_gates(method, 0, 0.0, 1.0)
    set_gates(method, 1, -1.0, 0.0, 0.5, 2.0)
    convolution = 3 * open_probability(double(0.0, 1.0)).sum() * (0.2 / 10 + 0.05 * 4)
    linear = 3 * open_probability(double(-1.0, 0.0, 0.5, 2.0)).sum() * (0.5 / 10 + 0.05 * 4)
    torch.testing.assert_close(method.penalty(), convolution + linear)


def test_the_penalty_rises_with_every_log_alpha() -> None:
    _, method = method_of(nn.Linear(4, 3), gates="weight")
    method.penalty().backward()
    gradient = method.log_alphas[0].grad
    assert gradient is not None
    assert bool((gradient > 0).all())


def test_gates_start_at_their_drop_rate() -> None:
    _, method = method_of(nn.Linear(500, 2), nn.Linear(2, 3), drop_rate=[0.2, 0.5])
    assert method.log_alphas[0].shape == (500,)
    assert float(method.log_alphas[0].detach().mean()) == pytest.approx(math.log(4), abs=0.003)
    assert float(method.log_alphas[0].detach().std()) == pytest.approx(0.01, rel=0.2)
    assert method.log_alphas[1].tolist() == pytest.approx([0, 0], abs=0.05)


def test_log_alpha_stays_within_log_hundred() -> None:
    _, method = method_of(nn.Linear(3, 1))
    set_gates(method, 0, -9.0, 1.0, 9.0)
    method.after_step(0.1)
    assert method.log_alphas[0].tolist() == pytest.approx([-math.log(100), 1, math.log(100)])


def test_a_linear_layers_inputs_are_gated() -> None:
    model, method = method_of(nn.Linear(3, 2))
    set_gates(method, 0, -4.0, 0.0, 4.0)  # test-time gates 0, 1/2, 1
    layer = masked_weights(model)[0]
    before, x = layer.weight.detach().clone(), torch.randn(4, 3, dtype=torch.float64)
    expected = torch.nn.functional.linear(x * double(0, 0.5, 1), before, model.get_parameter("0.bias"))
    torch.testing.assert_close(model.eval()(x), expected)
    method.decide()
    assert layer.mask.tolist() == [[False, True, True]] * 2
    torch.testing.assert_close(layer.weight.detach(), before * double(0, 0.5, 1))


@pytest.mark.parametrize("transposed", [True, False])
def test_a_convolutions_maps_are_gated_bias_and_all(transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model, method = method_of(kind(4, 4, 2, groups=2))
    set_gates(method, 0, -4.0, 0.0, 4.0, 0.0)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    method.detach()
    plain = model.eval()(x)
    method.attach()
    gated = model(x)
    torch.testing.assert_close(gated, plain * double(0, 0.5, 1, 0.5).view(4, 1, 1))
    torch.testing.assert_close(model(x[0]), gated[0])  # without a batch
    method.decide()
    torch.testing.assert_close(model(x), gated)
    assert model.get_parameter("0.bias")[0] == 0
    assert method.density() == 0.75


@pytest.mark.parametrize("layer", [nn.Linear(5, 2), nn.Conv1d(1, 5, 1)])
@pytest.mark.parametrize("per_example", [True, False])
def test_gates_are_drawn_once_a_batch_or_for_every_example(layer: nn.Module, per_example: bool) -> None:
    model, _ = method_of(layer, per_example=per_example)
    shape = (6, 5) if isinstance(layer, nn.Linear) else (6, 1, 3)
    output = model.train()(torch.ones(shape, dtype=torch.float64))
    alike = [torch.equal(row, output[0]) for row in output[1:]]
    assert not any(alike) if per_example else all(alike)
    assert not torch.equal(model(torch.ones(shape, dtype=torch.float64)), output)


def test_per_example_gates_are_the_same_at_every_position() -> None:
    model, _ = method_of(nn.Linear(5, 2), per_example=True)
    output = model.train()(torch.ones(3, 4, 5, dtype=torch.float64))
    assert torch.equal(output, output[:, :1].expand_as(output))


def test_a_density_ranks_groups_by_log_alpha_and_weights_within_by_magnitude() -> None:
    model, method = method_of(nn.Linear(3, 2))
    weight = masked_weights(model)[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[9.0, 1.0, 1.0], [8.0, -2.0, 1.0]]))
    set_gates(method, 0, -1.0, 0.5, 1.0)
    method.decide(0.5)
    assert masked_weights(model)[0].mask.tolist() == [[False, False, True], [False, True, True]]


def test_closed_inputs_are_removed_by_export() -> None:
    model, method = method_of(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    set_gates(method, 0, *[3.0] * 6)
    set_gates(method, 1, *[-4.0] * 6, 0.5, 2.0)
    set_gates(method, 2, -4.0, 3.0, -4.0, 1.0, 0.0)
    x = torch.randn(7, 6, dtype=torch.float64)
    before = model.eval()(x)
    method.decide()
    compact = sparsefx.export(model, (x,))
    torch.testing.assert_close(compact(x), before, rtol=1e-11, atol=1e-11)
    layers = [layer for layer in compact.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(6, 2), (2, 3), (3, 2)]


def test_closed_maps_are_removed_by_export() -> None:
    model, method = method_of(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 3, padding=1))
    set_gates(method, 0, -4.0, 1.0, -4.0, -4.0, 2.0)
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    before = model.eval()(x)
    method.decide()
    compact = sparsefx.export(model, (x,))
    torch.testing.assert_close(compact(x), before, rtol=1e-11, atol=1e-11)
    assert [m.out_channels for m in compact.modules() if isinstance(m, nn.Conv2d)] == [2, 2]


def test_training_closes_the_gates_of_useless_inputs() -> None:
    model, method = method_of(nn.Linear(6, 1), strength=0.5, weight_decay=0.0)
    groups = [{"params": list(model.parameters())}, *method.parameter_groups()]
    optimizer = torch.optim.Adam([{**group, "lr": 0.1} for group in groups])
    torch.manual_seed(1)
    for step in range(150):
        x = torch.randn(64, 6, dtype=torch.float64)
        loss = (model(x)[:, 0] - 3 * x[:, 1] + 2 * x[:, 4]).square().mean() + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 150)
    method.decide()
    assert masked_weights(model)[0].mask.tolist() == [[False, True, False, False, True, False]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": "map"}, "gates='map'"),
        ({"gates": "weight", "per_example": True}, "per_example=True"),
        ({"strength": [0.1, 0.2]}, "strength has 2 values, model 1 masked"),
        ({"strength": -0.1}, "strength=-0.1"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        method_of(nn.Linear(3, 2), **options)
