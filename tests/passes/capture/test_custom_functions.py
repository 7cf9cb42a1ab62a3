"""Custom autograd functions, and functions of ``torch.jit.script``."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import relative_difference
from torch import Tensor, nn

import sparsefx


class Clipped(torch.autograd.Function):
    """The sign, with the gradient of a clipped identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign() * slope

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() < 1), None


class Net(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 8), nn.Linear(8, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def clipped(x: Tensor) -> Tensor:
    return Clipped.apply(x, 0.5)  # type: ignore[no-any-return, no-untyped-call]


def net(function: Any) -> Net:
    torch.manual_seed(0)
    model = Net(function).double().eval()
    with torch.no_grad():
        model.first.weight[::2] = 0
        model.last.weight[:, ::2] = 0
    return model


X = torch.randn(5, 4, dtype=torch.float64)


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    model(X).square().sum().backward()
    return [p.grad.abs().sum() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("trains", [False, True])
def test_an_autograd_function_loses_channels(trains: bool) -> None:
    model = net(clipped)
    compact = sparsefx.export(model, (X,), fold_batchnorm=not trains)
    assert compact.get_submodule("first").out_features == 4
    assert relative_difference(compact(X), model(X)) <= 1e-11


def test_an_autograd_function_keeps_its_gradient() -> None:
    model = net(clipped)
    sparse = sparsefx.sparsify(model, density=1)
    assert isinstance(sparse, torch.fx.GraphModule)
    assert gradients(sparse) == gradients(model)
    compact = sparsefx.export(model, (X,), fold_batchnorm=False)
    file = io.BytesIO()
    torch.save(compact, file)
    file.seek(0)
    for kept in (compact, copy.deepcopy(compact), torch.load(file, weights_only=False)):
        (first, *_) = gradients(kept)
        assert first > 0


def gated(x: Tensor) -> Tensor:
    return torch.tanh(x) * torch.sigmoid(x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("held", [False, True])  # deepcopy refuses a model that holds one
def test_a_scripted_function_is_looked_into(tmp_path: Path, held: bool) -> None:
    scripted = torch.jit.script(gated)
    model = net(scripted if held else lambda x: scripted(x))
    compact = sparsefx.export(model, (X,))
    assert compact.get_submodule("first").out_features == 4
    assert relative_difference(compact(X), model(X)) <= 1e-11
    sparse = sparsefx.sparsify(model, density=1)
    assert isinstance(sparse, torch.fx.GraphModule)
    assert torch.equal(sparse(X), model(X))
    sparsefx.save(compact, tmp_path / "compact")
    assert torch.equal(sparsefx.load(tmp_path / "compact", model)(X), compact(X))
