"""Norms that treat each channel, or each group of channels, apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import relative_difference
from torch import nn
from torch.nn import functional as F

import sparsefx

NORMS: dict[str, Callable[[], nn.Module]] = {
    "instance": lambda: nn.InstanceNorm2d(8),
    "scaled instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "running instance": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "single groups": lambda: nn.GroupNorm(8, 8),
    "pairs": lambda: nn.GroupNorm(4, 8),
}


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_constant_channels_are_removed(name: str, trains: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NORMS[name](), nn.ReLU(), nn.Conv2d(8, 2, 3)).double().eval()
    with torch.no_grad():
        model[0].weight[:4] = 0
        for tensor in (*model[1].parameters(), *model[1].buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    compact = sparsefx.export(model, (x,), fold_batchnorm=not trains)
    assert compact.get_submodule("0").out_channels == 4
    for size in [(9, 7), (6, 12)]:
        other = torch.randn(1, 3, *size, dtype=torch.float64)
        assert relative_difference(compact(other), model(other)) <= 1e-11
    compact.train()(x).sum().backward()


class Own(nn.GroupNorm):
    """Calls the functional with its own numbers, as BiT does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps).relu()


def test_a_functional_group_norm_loses_groups(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), Own(4, 8), nn.Conv2d(8, 2, 1)).double().eval()
        with torch.no_grad():
            model[0].weight[:4] = 0
            model[1].weight.uniform_(0.5, 1.5)
        return model

    model, x = net(), torch.randn(2, 3, 9, 7, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert compact.get_submodule("0").out_channels == 4
    assert relative_difference(compact(x), model(x)) <= 1e-11
    sparsefx.save(compact, tmp_path / "net")
    assert torch.equal(sparsefx.load(tmp_path / "net", net())(x), compact(x))


def test_a_group_norm_without_parameters_keeps_its_count() -> None:
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.group_norm(x, 4)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Plain(), nn.Conv2d(8, 2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight[:4] = 0
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert not compact.report.opaque
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_the_sizes_of_a_split_follow_the_input() -> None:
    """Coordinate attention takes rows and columns of a map apart."""

    class Coordinates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.squeeze = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
            self.rows, self.columns, self.last = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            height, width = x.shape[2:]
            means = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT], 2)
            rows, columns = torch.split(self.squeeze(means).relu(), [height, width], dim=2)
            return self.last(x * self.rows(rows).sigmoid() * self.columns(columns.mT).sigmoid())

    torch.manual_seed(0)
    model = Coordinates().double().eval()
    with torch.no_grad():
        model.squeeze.weight[::2] = 0
    compact = sparsefx.export(model, (torch.randn(2, 3, 6, 8, dtype=torch.float64),))
    assert compact.get_submodule("squeeze").out_channels == 3
    for size in [(6, 8), (5, 11), (1, 2)]:
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11
