"""What follows from parameters alone is computed once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import relative_difference
from pass_checks import check_pass, text
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.rewrites.constant_folding import ConstantFolding


class Standardised(nn.Conv2d):
    """A convolution that standardises the rows of its weight, as those of NF-Nets do."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, padding=1)
        self.gain = nn.Parameter(torch.rand(sizes[1]) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        rows = F.batch_norm(rows, None, None, weight=self.gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, rows.reshape_as(self.weight), self.bias, self.stride, self.padding)


def test_a_standardised_weight_loses_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 4, 3)).double()
    with torch.no_grad():
        model[0].weight[::2] = 0
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    shapes = [tuple(p.shape) for p in compact.parameters() if p.dim() == 4]
    assert shapes == [(5, 3, 3, 3), (4, 5, 3, 3)]  # one empty row carries the constants into the padding
    for size in (5, 8):
        x = torch.randn(3, 3, size, size, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11
    trainable = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert "0.gain" in dict(trainable.named_parameters())


class Holds(nn.Module):
    """A matrix and a buffer, and what is computed with them."""

    def __init__(self, function: Callable[[Holds, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.function = nn.Parameter(torch.randn(4, 4)), function
        self.register_buffer("calls", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


LEFT: dict[str, Callable[[Holds, Tensor], Tensor]] = {
    "a view": lambda m, x: x @ m.w.t(),
    "larger": lambda m, x: x @ (m.w[:, :, None] * m.w[:, None]).flatten(1),
    "needed as it is": lambda m, x: x @ m.w.exp() @ m.w,
    "random": lambda m, x: x @ F.dropout(m.w, 0.0, training=True),
    "a buffer alone": lambda m, x: x + m.calls.exp(),
    "written": lambda m, x: x + m.w.detach().add_(0).mul(2).mean(0),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone(name: str) -> None:
    torch.manual_seed(0)
    check_pass(ConstantFolding(), Holds(LEFT[name]), torch.randn(3, 4, dtype=torch.float64), removes=0)


def test_what_is_computed() -> None:
    torch.manual_seed(0)
    model = Holds(lambda m, x: x @ (m.w / m.w.norm(dim=1, keepdim=True)).abs())
    graph_module = check_pass(ConstantFolding(), model, torch.randn(3, 4, dtype=torch.float64), removes=3)
    assert text(graph_module)[1] == "abs_1_computed = abs_1_computed()"
