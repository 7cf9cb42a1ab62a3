"""Gathers before layers that read few channels of a stream, scatters after those that write few."""

from __future__ import annotations

import pytest
import torch
from pass_checks import check_pass, text
from torch import Tensor, nn

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.passes.rewrites import gather
from sparsefx.passes.rewrites.gather import Gather


class Residual(nn.Module):
    """A stream of 6 channels; the block reads three of them and writes two."""

    def __init__(self, *, convolution: bool, bias: bool) -> None:
        super().__init__()
        self.block = nn.Conv2d(6, 6, 3, padding=1, bias=bias) if convolution else nn.Linear(6, 6, bias)
        with torch.no_grad():
            self.block.weight[:, [0, 2, 5]] = 0
            self.block.weight[[1, 2, 3, 4]] = 0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
def test_a_residual_block(convolution: bool, bias: bool) -> None:
    torch.manual_seed(0)
    model = Residual(convolution=convolution, bias=bias)
    x = torch.randn(2, 6, 5, 6, dtype=torch.float64)
    graph_module = check_pass(Gather("always"), model, x)
    assert tuple(graph_module.get_submodule("block").weight.shape[:2]) == (2, 3)
    made = [line.partition(" = ")[0] for line in text(graph_module)]
    assert made.count("index_select") == made.count("index_add") == 1
    assert made.count("block_constants") == bias


def test_golden_graph() -> None:
    torch.manual_seed(0)
    model = Residual(convolution=False, bias=False)
    graph_module = check_pass(Gather("always"), model, torch.randn(2, 6, dtype=torch.float64))
    assert text(graph_module) == [
        "x = x()",
        "block_inputs = block_inputs()",
        "index_select = index_select(x, -1, block_inputs)",
        "block = Linear[2, 3](index_select)",
        "block_outputs = block_outputs()",
        "index_add = index_add(x, -1, block_outputs, block)",
        "output = output(index_add)",
    ]
    assert graph_module.block_inputs.tolist() == [1, 3, 4]
    assert graph_module.block_outputs.tolist() == [0, 5]


def test_never_and_layers_that_use_everything() -> None:
    model = Residual(convolution=False, bias=True)
    check_pass(Gather("never"), model, torch.randn(2, 6, dtype=torch.float64), removes=0)
    full = nn.Sequential(nn.Linear(6, 6))
    check_pass(Gather("always"), full, torch.randn(2, 6, dtype=torch.float64), removes=0)


class Broadcast(nn.Module):
    """What is added has another shape, is added to itself, or is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        for layer in self.layers:
            layer.weight.data[1] = 0

    def forward(self, x: Tensor) -> Tensor:
        one = self.layers[0](x.mean(0, keepdim=True)) + x
        two = self.layers[1](x)
        three = self.layers[2](x)
        return one + (two + two) + (three + x) * three


def test_additions_that_are_no_residual_stay() -> None:
    torch.manual_seed(0)
    graph_module = check_pass(
        Gather("always"), Broadcast(), torch.randn(3, 4, dtype=torch.float64), removes=0
    )
    assert not any("index_add" in line for line in text(graph_module))


def test_auto_takes_the_faster_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for verdict, columns in ((True, 3), (False, 6)):
        monkeypatch.setattr(gather, "is_faster", lambda one, other, verdict=verdict: verdict)
        model = Residual(convolution=False, bias=True)
        graph_module = check_pass(Gather("auto"), model, torch.randn(2, 6, dtype=torch.float64))
        assert graph_module.get_submodule("block").weight.shape[1] == columns


def test_export_with_every_kind_of_gather() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        Residual(convolution=True, bias=True), nn.ReLU(), Residual(convolution=True, bias=True)
    )
    model.double()
    x = torch.randn(2, 6, 5, 6, dtype=torch.float64)
    sizes = {}
    for when in ("never", "auto", "always"):
        compact = sparsefx.export(model, (x,), gather=when)
        torch.testing.assert_close(compact(x[:1]), model(x[:1]), rtol=1e-11, atol=1e-11)
        sizes[when] = sum(parameter.numel() for parameter in compact.parameters())
    assert sizes["always"] < sizes["never"]
    with pytest.raises(ArgumentError, match="gather='sometimes' is none of 'auto', 'never', 'always'"):
        sparsefx.export(model, (x,), gather="sometimes")
