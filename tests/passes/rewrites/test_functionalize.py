"""Writes in place become values where nothing else sees them, at any size."""

from __future__ import annotations

import pytest
import torch
from pass_checks import graph_of
from torch import Tensor, nn

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.rewrites import functionalize
from sparsefx.passes.rewrites.functionalize import Functionalize


class Overlapping(nn.Module):
    """Two views that have elements in common from a width of 18 on."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        first = h[:, : x.shape[1] // 2]
        last = h[:, 8:]
        last += 1
        return first.sum(1) + last.sum(1)


class Residual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        h += x
        return h.relu()


@pytest.mark.parametrize("widths", [(10, 40), (40, 10)])
def test_views_that_overlap_at_one_size_alone(widths: tuple[int, int]) -> None:
    inputs = [(torch.randn(2, width),) for width in widths]
    graph = graph_of(Overlapping(), *(x for (x,) in inputs))
    Functionalize().run(graph, Analyses(graph, inputs))
    graph.recompile()
    for width in (10, 17, 18, 40):
        x = torch.randn(2, width)
        assert torch.equal(graph(x), Overlapping()(x))


def test_one_run_is_enough_where_nothing_shares_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = functionalize._Observer.run

    def noted(self: functionalize._Observer, x: Tensor) -> object:
        sizes.append(len(x))
        return run(self, x)

    monkeypatch.setattr(functionalize._Observer, "run", noted)
    inputs = [(torch.randn(6, 4),), (torch.randn(3, 4),)]
    graph = graph_of(Residual(), *(x for (x,) in inputs))
    assert Functionalize().run(graph, Analyses(graph, inputs)).modified
    assert sizes == [3]
