"""Groups of convolutions with widths that kernels are made for."""

from __future__ import annotations

import pytest
import torch
from pass_checks import check_pass
from torch import Tensor, nn

import sparsefx
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.rewrites import shrink
from sparsefx.passes.rewrites.shrink import Shrink


class Grouped(nn.Module):
    """Three groups of ``width`` channels, of which the first ``used`` have any weight, between 1x1 layers."""

    def __init__(self, width: int, used: int) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(4, 3 * width, 1), nn.Conv2d(3 * width, 5, 1)
        self.grouped = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3)
        with torch.no_grad():
            for weight in (self.before.weight, self.grouped.weight):
                weight.view(3, width, *weight.shape[1:])[:, used:] = 0
                for parameter in (self.before.bias, self.grouped.bias):
                    parameter.view(3, width)[:, used:] = 0
            self.grouped.weight[:, used:] = 0
            self.after.weight.view(5, 3, width, 1, 1)[:, :, used:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.grouped(self.before(x)))


@pytest.mark.parametrize(
    ("needed", "full", "width"),
    [(0, 8, 1), (1, 8, 1), (3, 8, 4), (5, 8, 8), (5, 6, 6), (9, 24, 16), (17, 64, 24)],
)
def test_widths_by_hand(needed: int, full: int, width: int) -> None:
    assert KeepSets([], round_groups=True).group_width(needed, full) == width
    assert KeepSets([]).group_width(needed, full) == max(needed, 1)


@pytest.mark.parametrize(("when", "width"), [("never", 5), ("always", 8)])
def test_a_grouped_convolution_keeps_the_width_asked_for(when: str, width: int) -> None:
    graph_module = check_pass(
        Shrink(round_groups=when), Grouped(11, 5), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    )
    layers = [graph_module.get_submodule(name) for name in ("before", "grouped", "after")]
    shapes = [list(layer.weight.shape[:2]) for layer in layers]
    assert shapes == [[3 * width, 4], [3 * width, width], [5, 3 * width]]
    assert layers[1].groups == 3


@pytest.mark.parametrize(("faster", "width"), [(True, 8), (False, 5)])
def test_auto_takes_the_faster_width(monkeypatch: pytest.MonkeyPatch, faster: bool, width: int) -> None:
    monkeypatch.setattr(shrink, "is_faster", lambda one, other: faster)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    graph_module = check_pass(Shrink(round_groups="auto"), Grouped(11, 5), x)
    assert graph_module.get_submodule("grouped").in_channels == 3 * width


def test_a_depthwise_convolution_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "is_faster", None)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    nn.init.zeros_(model[0].weight[:4])
    nn.init.zeros_(model[0].bias[:4])
    nn.init.zeros_(model[1].bias)
    check_pass(Shrink(round_groups="auto"), model, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert sparsefx.export(model.float(), (torch.randn(1, 3, 5, 5),)).get_submodule("1").groups == 2
