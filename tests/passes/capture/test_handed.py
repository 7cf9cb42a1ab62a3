"""Modules that write to the lists and dicts which they are handed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import relative_difference
from torch import Tensor, nn

import sparsefx


class Writes(nn.Module):
    """Writes to its argument before it branches on data, so that it stays Python."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, values: Any) -> Tensor:
        values[0] = self.linear(values[0])
        return values[0] if values[0].sum() < 1e9 else values[1]


class Appends(Writes):
    def forward(self, values: Any) -> Tensor:
        values[2:] = [self.linear(values[0])]
        return values[0] if values[0].sum() < 1e9 else values[1]


class Net(nn.Module):
    def __init__(self, kind: type, writer: nn.Module, reads: bool) -> None:
        super().__init__()
        self.first, self.writer, self.last = nn.Linear(4, 8), writer, nn.Linear(8, 2)
        self.kind, self.reads = kind, reads

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        values = [x, 2 * x] if self.kind is list else {0: x, 1: 2 * x}
        y = self.writer(values)
        return self.last(y + 3 * values[0] + values[len(values) - 1] if self.reads else y)


X = torch.randn(3, 4, dtype=torch.float64)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("kind", [list, dict])
def test_what_a_leaf_writes_is_read_by_its_caller(kind: type, reads: bool) -> None:
    torch.manual_seed(0)
    model = Net(kind, Writes(), reads).double().eval()
    with pytest.warns(UserWarning, match="kept as Python modules .*: writer"):
        sparse = sparsefx.sparsify(model, density=1)
    assert torch.equal(sparse(X), model(X))
    compact = sparsefx.export(model, (X,))
    assert [part.name for part in compact.report.opaque] == ["writer"]
    assert relative_difference(compact(X), model(X)) <= 1e-11


def test_a_list_that_a_leaf_makes_longer() -> None:
    torch.manual_seed(0)
    model = Net(list, Appends(), True).double().eval()
    with pytest.warns(UserWarning, match="the model itself .it calls a module that adds to a list"):
        sparse = sparsefx.sparsify(model, density=1)
    assert torch.equal(sparse(X), model(X))
