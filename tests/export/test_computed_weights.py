"""Layers whose weight is computed at each call: parametrizations, and the hooks of older norms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import relative_difference
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import sparsefx

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


class Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.get_buffer("mask")


class Threshold(nn.Module):
    """Branches on data, so that it stays Python."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (weight.abs() > 1e-9) if weight.sum() < 1e9 else weight


class Factors(nn.Module):
    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        return rows @ columns

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.eye(len(weight), dtype=weight.dtype), weight


def parametrised(layer: nn.Module, by: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", by)


def masked(layer: nn.Linear) -> nn.Module:
    return parametrised(layer, Mask(torch.ones(8, 1).index_fill(0, torch.arange(4), 0)))


KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "masked": masked,
    "spectral": parametrizations.spectral_norm,
    "branches": lambda layer: parametrised(layer, Threshold()),
    "factors": lambda layer: parametrised(layer, Factors()),
    "chained": lambda layer: parametrised(masked(layer), nn.Tanh()),
    "old spectral": nn.utils.spectral_norm,
}


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Linear(6, 8).double()
    first.weight.data[:4] = 0
    return nn.Sequential(KINDS[kind](first), nn.ReLU(), nn.Linear(8, 3)).double().eval()


X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_its_empty_rows_are_removed(kind: str, tmp_path: Path) -> None:
    model = net(kind)
    compact = sparsefx.export(model, (X[:2],))
    assert sum(p.numel() for p in compact.parameters()) == 4 * (6 + 1 + 3) + 3
    assert relative_difference(compact(X), model(X)) <= 1e-11
    sparsefx.save(compact, tmp_path / "net")
    assert torch.equal(sparsefx.load(tmp_path / "net", net(kind))(X), compact(X))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_weight_norm_is_folded(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1)).double().eval()
    model[2].weight.data[:, 3:] = 0
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert sum(p.numel() for p in compact.parameters()) == 3 * (27 + 1) + 2 * (3 + 1)
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_parametrization_that_is_trained_on_is_named() -> None:
    model = net("masked")
    compact = sparsefx.export(model, (X,), fold_batchnorm=False)
    assert "4 of 8 output channels empty: its weight is computed at each call" in compact.report.why("0")
    assert "4 empty channels are left" in str(compact.report)
    compact.train()(X).sum().backward()
    assert compact.get_parameter("0.parametrizations.weight.original").grad is not None


def test_parameters_of_a_folded_constant_are_left_out() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6))
            self.register_buffer("kept", torch.ones(8, 1).index_fill(0, torch.arange(4), 0))
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(nn.functional.linear(x, self.weight * self.get_buffer("kept")).relu())

    model = Masked().double()
    compact = sparsefx.export(model, (X,))
    assert {name: tuple(p.shape) for name, p in compact.state_dict().items()} == {
        "linear_layer.weight": (4, 6), "last.weight": (3, 4), "last.bias": (3,)
    }  # fmt: skip
    assert relative_difference(compact(X), model(X)) <= 1e-11
