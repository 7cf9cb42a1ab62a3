"""Modules that keep something in attributes for their next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import relative_difference
from torch import Tensor, nn

import sparsefx


def grid(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], dtype=x.dtype)[:, None]


class Keeps(nn.Module):
    """Adds what a function makes of the module and its input to a linear layer's result."""

    def __init__(self, made: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.made = nn.Linear(8, 8), made
        self.shape: Any = None
        self.grid: Any = None
        self.grids = [torch.zeros(1)] * 2
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.made(self, x)


def by_shape(m: Any, x: Tensor) -> Tensor:
    if m.shape != x.shape:
        m.grid, m.shape = grid(x), x.shape
    return m.grid


def by_length(m: Any, x: Tensor) -> Tensor:
    if x.shape[1] != m.shape:
        m.grid, m.shape = grid(x), x.shape[1]
    return m.grid


def in_a_list(m: Any, x: Tensor) -> Tensor:
    if m.grids[0].shape[0] != x.shape[1]:
        m.grids[0] = grid(x)
    return m.grids[0]


def at_first(m: Any, x: Tensor) -> Tensor:
    if m.grid is None or m.grid.size(0) != x.size(1):
        m.grid = grid(x)
    return m.grid


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return x * m.calls


def remembers(m: Any, x: Tensor) -> Tensor:
    m.grid = x if m.grid is None or m.grid.shape != x.shape else m.grid / 2 + x
    return m.grid


def grows(m: Any, x: Tensor) -> Tensor:
    if m.grids[0].shape[0] < x.shape[1]:
        m.grids[0] = grid(x)
    return m.grids[0][: x.shape[1]]


def shows(m: Any, x: Tensor) -> Tensor:
    m.grid = x
    return x


class Net(nn.Module):
    def __init__(self, made: Callable[[Any, Tensor], Tensor], reads: bool = False) -> None:
        super().__init__()
        self.first, self.keeps, self.last = nn.Linear(4, 8), Keeps(made), nn.Linear(8, 2)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        y = self.keeps(self.first(x).relu())
        return self.last(y + self.keeps.grid if self.reads else y)


X = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net(*arguments: Any, warm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = Net(*arguments).double().eval().requires_grad_(False)
    model.first.weight[::2] = 0
    if warm:
        model(X)
    return model


def assert_same_sequence(compact: nn.Module, model: nn.Module) -> None:
    for shape in [(2, 5, 4), (2, 5, 4), (1, 1, 4), (3, 8, 4), (2, 5, 4)]:
        x = torch.randn(shape, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("made", [by_shape, by_length, in_a_list, at_first])
def test_what_is_compared_with_the_present_call_is_made_anew(made: Any, warm: bool) -> None:
    model = net(made, warm=warm)
    compact = sparsefx.export(model, (X,))
    assert not compact.report.opaque
    assert compact.get_submodule("keeps.linear").in_features == 4
    assert_same_sequence(compact, model)


def test_the_caller_reads_what_is_kept() -> None:
    model = net(by_shape, True)
    compact = sparsefx.export(model, (X,))
    assert not compact.report.opaque
    assert_same_sequence(compact, model)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("made", [counts, remembers, grows, shows])
def test_what_later_calls_use_stays_python_alone(made: Any, warm: bool) -> None:
    model = net(made, warm=warm)
    compact = sparsefx.export(model, (X,))
    assert [part.name for part in compact.report.opaque] == ["keeps"]
    assert compact.report.captured == "whole"
    assert compact.get_submodule("first").out_features == 8
    assert_same_sequence(copy.deepcopy(compact), copy.deepcopy(model))


@pytest.mark.parametrize("made", [by_shape, in_a_list, counts, shows])
def test_an_export_leaves_what_is_kept_as_it_was(made: Any) -> None:
    model = net(made)
    keeps = model.get_submodule("keeps")
    before, grids = dict(vars(keeps)), list(keeps.grids)
    compact = sparsefx.export(model, (X,))
    assert all(vars(keeps)[name] is value for name, value in before.items())
    assert all(one is other for one, other in zip(keeps.grids, grids, strict=True))
    if compact.report.opaque:
        own = compact.get_submodule("keeps")
        assert (own.calls, own.grid, own.shape) == (0, None, None)


def test_a_parent_in_python_that_reads_what_a_part_keeps() -> None:
    """The part stays as it is: a graph keeps nothing that its parent could read."""

    class Python(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() < 1e9 else x

    torch.manual_seed(0)
    model = Python(by_shape, True).double().eval().requires_grad_(False)
    model.keeps = nn.Sequential(model.keeps)  # type: ignore[assignment]
    type(model.keeps).grid = property(lambda self: self[0].grid)  # type: ignore[attr-defined]
    try:
        with pytest.warns(UserWarning, match="stays Python"):
            compact = sparsefx.export(model, (X,))
        assert_same_sequence(compact, model)
    finally:
        del type(model.keeps).grid  # type: ignore[attr-defined]
