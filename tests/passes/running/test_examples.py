"""Example calls at other sizes: which sizes follow the input, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsefx.passes.running.examples import at_other_sizes, at_unusual_sizes, bind, call, graph_inputs


def shapes(run: Callable[..., Any], *inputs: Any) -> list[list[tuple[int, ...]]]:
    """The shapes of the inputs at each size."""
    found = at_other_sizes(lambda values: run(*values), inputs)
    return [[tuple(leaf.shape) for leaf in values if isinstance(leaf, Tensor)] for values in found]


def test_batch_and_positions_change_together() -> None:
    run = nn.Conv2d(3, 4, 3)
    assert shapes(run, torch.zeros(2, 3, 8, 8)) == [[(2, 3, 8, 8)], [(3, 3, 16, 16)]]


def test_large_sizes_are_halved_and_small_ones_grow_beyond_a_stride() -> None:
    assert shapes(torch.relu, torch.zeros(1, 256, 2)) == [[(1, 256, 2)], [(2, 128, 8)]]


def test_what_no_trial_run_accepts_is_fixed() -> None:
    assert shapes(nn.Linear(4, 2), torch.zeros(2, 4))[1] == [(3, 4)]
    assert shapes(lambda x: x.view(2, 4), torch.zeros(2, 4)) == [[(2, 4)]]


def test_sizes_of_two_inputs_change_together() -> None:
    run = lambda x, y, scale: x + y * scale  # noqa: E731
    assert shapes(run, torch.zeros(2, 5), torch.zeros(2, 5), 3)[1] == [(3, 10), (3, 10)]


def test_equal_sizes_that_mean_different_things_change_one_by_one() -> None:
    run = lambda x: x @ torch.zeros(4, 2)  # noqa: E731
    assert shapes(run, torch.zeros(1, 4, 4))[1] == [(2, 8, 4)]


def test_sizes_that_a_model_takes_only_in_certain_steps() -> None:
    def windows(x: Tensor) -> Tensor:
        assert x.shape[1] % 32 == 0
        assert x.shape[1] < 100
        return x

    assert shapes(windows, torch.zeros(1, 96)) == [[(1, 96)], [(2, 96)]]
    assert shapes(windows, torch.zeros(1, 64)) == [[(1, 64)], [(2, 96)]]


def test_changes_that_only_work_alone_make_an_example_each() -> None:
    def either(x: Tensor) -> Tensor:
        assert x.shape[0] == 2 or x.shape[1] == 5
        return x

    assert shapes(either, torch.zeros(2, 5)) == [[(2, 5)], [(3, 5)], [(2, 10)]]


def test_a_size_at_which_samples_lose_their_results_is_fixed() -> None:
    flatten = lambda x: x.view(-1, 4 * 3 * 3)  # noqa: E731
    assert shapes(flatten, torch.zeros(2, 4, 3, 3)) == [[(2, 4, 3, 3)], [(3, 4, 3, 3)]]


def test_inputs_without_sizes() -> None:
    assert at_other_sizes(lambda values: None, (3, torch.zeros(()))) == [(3, torch.zeros(()))]


def test_values_are_those_of_the_inputs() -> None:
    x = torch.arange(6).view(2, 3)
    (_, (other,)) = at_other_sizes(lambda values: None, (x,))
    assert set(other.flatten().tolist()) == set(range(6))


class Signature(nn.Module):
    def forward(self, x: Tensor, *rest: Tensor, scale: float = 2.0, **more: Tensor) -> Tensor:
        return x


def test_bound_arguments() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert bind(Signature(), (x, y, y), {"mask": y}) == {"x": x, "*rest": (y, y), "scale": 2.0, "mask": y}
    with pytest.raises(TypeError):
        bind(Signature(), (), {})


def takes_widths(*widths: int) -> Callable[[Tensor], Tensor]:
    """A model of two samples that refuses all other widths."""

    def run(x: Tensor) -> Tensor:
        assert len(x) == 2
        assert x.shape[1] in widths
        return x

    return run


def test_a_size_never_becomes_one_which_would_be_broadcast() -> None:
    assert shapes(takes_widths(1, 3), torch.ones(2, 3)) == [[(2, 3)]]


def test_half_as_large_again_is_tried_before_one_more() -> None:
    assert shapes(takes_widths(4, 5, 6), torch.ones(2, 4)) == [[(2, 4)], [(2, 6)]]


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
