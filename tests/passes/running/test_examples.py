"""Example calls: bound arguments, the inputs of a graph, and sizes that trials do not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsefx.passes.running.examples import at_unusual_sizes, bind, call, graph_inputs


class Signature(nn.Module):
    def forward(self, x: Tensor, *rest: Tensor, scale: float = 2.0, **more: Tensor) -> Tensor:
        return x


def test_bound_arguments() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert bind(Signature(), (x, y, y), {"mask": y}) == {"x": x, "*rest": (y, y), "scale": 2.0, "mask": y}
    with pytest.raises(TypeError):
        bind(Signature(), (), {})


def test_calls_with_bound_arguments() -> None:
    def function(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert call(function, {"x": 1, "*rest": (2, 3), "scale": 4}) == ((1, 2, 3), {"scale": 4})
    assert call(function, {"x": 1, "y": 2}) == ((), {"x": 1, "y": 2})


def test_unusual_sizes() -> None:
    x, y = torch.ones(2, 6), torch.ones(2, 6)
    shapes = {(tuple(e["x"].shape), tuple(e["y"].shape)) for e in at_unusual_sizes({"x": x, "y": y, "n": 3})}
    assert {
        ((2, 1), (2, 1)),
        ((2, 7), (2, 7)),
        ((2, 7), (2, 6)),
        ((1, 1), (1, 1)),
        ((3, 6), (2, 6)),
    } <= shapes


def test_the_inputs_of_a_graph_in_its_order() -> None:
    graph = torch.fx.Graph()
    for name in ("scale", "*rest", "x"):
        graph.placeholder(name)
    example = {"x": 1, "*rest": (2, 3), "scale": 4, "unused": 5}
    assert graph_inputs(graph, [example]) == [(4, 2, 3, 1)]
