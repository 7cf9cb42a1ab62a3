"""Subnormal numbers: training flushes what decays into them, and export sets subnormal weights to 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import masked_mlp
from torch import Tensor, nn

import sparsefx
from sparsefx._common.subnormal import flush_subnormal, subnormal
from sparsefx.masking.masks import masked_weights

TINY = torch.finfo(torch.float32).tiny


def test_what_is_subnormal() -> None:
    values = torch.tensor([0.0, TINY, TINY / 2, -1e-45, torch.nan, -torch.inf, 1.0])
    assert subnormal(values).tolist() == [False, False, True, True, False, False, False]
    flush_subnormal(values)
    expected = torch.tensor([0.0, TINY, 0.0, 0.0, torch.nan, -torch.inf, 1.0])
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    half = torch.tensor([1e-6], dtype=torch.float16)
    flush_subnormal(half)
    assert half.item() > 0
    assert not subnormal(half).any()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.9)),
    "fused adam": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.9), weight_decay=0, fused=True),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
}


def _kept(optimizer: sparsefx.SparseMomentum) -> list[Tensor]:
    kept = [value for state in optimizer.state.values() for value in state.values()]
    kept += optimizer._averages.tensors.values()
    return [value for value in kept if isinstance(value, Tensor) and value.dim()]


def _small(optimizer: sparsefx.SparseMomentum) -> int:
    return sum(int(subnormal(value).sum()) for value in _kept(optimizer))


def _decayed(name: str, steps: int) -> sparsefx.SparseMomentum:
    """An optimizer whose averages have fallen to 1e-36 at its first step, and fall on."""
    model = masked_mlp(6, 12, 3, density=0.5)
    optimizer = sparsefx.SparseMomentum(OPTIMIZERS[name](model.parameters()), model, cycles=3)
    model(torch.ones(4, 6)).sum().backward()
    optimizer.step()
    for kept in _kept(optimizer):
        kept.fill_(1e-36)
    for parameter in model.parameters():
        parameter.grad.zero_()
    for _ in range(steps - 1):
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_dead_neurons_end_at_0(name: str) -> None:
    assert _small(_decayed(name, 127)) > 0
    assert _small(_decayed(name, 128)) == 0


def test_weights_under_decay_end_at_0() -> None:
    model = masked_mlp(6, 3, density=0.5)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.2)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(4 * 128):
        optimizer.step()
    (masked,) = masked_weights(model)
    assert not subnormal(masked.weight).any()
    assert int(masked.mask.sum()) == 9


def test_squares_that_are_divided_by_without_eps_are_left_alone() -> None:
    model = masked_mlp(6, 3, density=1.0)
    adam = torch.optim.Adam(model.parameters(), lr=0.1, eps=0.0)
    optimizer = sparsefx.SparseMomentum(adam, model, cycles=3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-21)
    for _ in range(128):
        optimizer.step()
    assert _small(optimizer) > 0
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def _with_subnormal(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in (layer for layer in model.modules() if isinstance(layer, nn.Linear)):
            layer.weight[2:] = 1e-40
            layer.bias[2:] = 0
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"fold_batchnorm": False}, {"kernels": "sparse"}])
def test_export_sets_subnormal_weights_to_0(options: dict[str, Any]) -> None:
    if options.get("kernels"):
        pytest.importorskip("llvmlite")
    torch.manual_seed(0)
    model = _with_subnormal(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 5)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 4)
    compact = sparsefx.export(model, (x,), **options)
    assert not any(subnormal(parameter).any() for parameter in compact.parameters())
    torch.testing.assert_close(compact(x), model(x), rtol=1e-5, atol=1e-6)
    if not options.get("kernels"):
        assert compact.get_submodule("0").out_features == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_folding_makes_subnormal_is_0() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    with torch.no_grad():
        model[0].weight[1:, 0] = 1e-37
        model[1].weight.fill_(1e-3)
    compact = sparsefx.export(model, (torch.randn(2, 4),))
    assert not any(subnormal(parameter).any() for parameter in compact.parameters())


class Normed(nn.Module):
    """It divides by the norm of what may be subnormal."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.layer.weight, 1e-39)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y / y.abs().amax(1, keepdim=True)


def test_weights_on_which_results_depend_stay_and_are_told() -> None:
    model, x = Normed(), torch.ones(2, 4)
    with pytest.warns(UserWarning, match=r"16 parameters are subnormal .*, so they stay"):
        compact = sparsefx.export(model, (x,))
    assert torch.equal(compact(x), model(x))
