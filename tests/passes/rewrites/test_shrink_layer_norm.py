"""Layer norms that lose constant channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pass_checks import check_pass
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.rewrites.shrink_layer_norm import PartialLayerNorm, ShrinkLayerNorm


class Stream(nn.Module):
    """An embedding, a block behind a norm, and a head behind another; channels 1, 4 and 6 are constants."""

    def __init__(self, affine: bool = True, constant: float = 0.0) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.last = (nn.LayerNorm(8, elementwise_affine=affine) for _ in range(2))
        self.head = nn.Linear(8, 3)
        dead = [1, 4, 6]
        with torch.no_grad():
            for layer in (self.first, self.down):
                layer.weight[dead] = 0
                layer.bias[dead] = constant
            for layer in (self.up, self.head):
                layer.weight[:, dead] = 0
            for norm in (self.norm, self.last) if affine else ():
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x))


@pytest.mark.parametrize("constant", [0.0, 1.5])
@pytest.mark.parametrize("affine", [True, False])
def test_channels_leave_the_stream_and_its_norms(affine: bool, constant: float) -> None:
    torch.manual_seed(0)
    model = Stream(affine, constant).double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    compact = sparsefx.export(model, (x,), gather="never")
    y = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(compact(y), model(y), rtol=1e-11, atol=1e-11)
    assert compact.get_submodule("first").out_features == 5
    assert compact.get_submodule("up").in_features == 5
    assert isinstance(compact.get_submodule("last"), PartialLayerNorm)


def test_the_pass() -> None:
    torch.manual_seed(0)
    graph_module = check_pass(
        ShrinkLayerNorm(), Stream(), torch.randn(2, 7, 5, dtype=torch.float64), removes=0
    )
    norm = graph_module.get_submodule("norm")
    assert norm.counted.flatten().tolist() == [1, 0, 1, 1, 0, 1, 0, 1]
    assert norm.missing == 3


def test_a_norm_whose_results_are_read_stays() -> None:
    torch.manual_seed(0)
    model = Stream()
    model.up.weight.data.normal_()
    model.head.weight.data.normal_()
    check_pass(ShrinkLayerNorm(), model, torch.randn(2, 7, 5, dtype=torch.float64), removes=0)
    assert not any(isinstance(module, PartialLayerNorm) for module in model.modules())


def test_few_constants_are_not_worth_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.LayerNorm(32), nn.Linear(32, 2))
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[0].bias[:3] = 0
        model[2].weight[:, :3] = 0
    check_pass(ShrinkLayerNorm(), model, torch.randn(2, 4, dtype=torch.float64), removes=0)
    assert type(model[1]) is nn.LayerNorm


def test_in_float32_too_a_large_mean_costs_no_precision() -> None:
    torch.manual_seed(0)
    model = Stream(constant=1.5)
    model.first.bias.data += 100
    x = torch.randn(4, 5)
    compact = sparsefx.export(model, (x,), gather="never")
    torch.testing.assert_close(compact(x), model(x), rtol=2e-4, atol=2e-4)


def test_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stream().double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    sparsefx.save(compact, tmp_path / "file")
    loaded = sparsefx.load(tmp_path / "file", Stream())
    assert isinstance(loaded.get_submodule("last"), PartialLayerNorm)
    assert torch.equal(loaded(x), compact(x))
