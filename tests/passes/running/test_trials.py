"""Which sizes vary, found by trial: each by itself where the model allows, together where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.passes.running.size_search import at_other_sizes
from sparsefx.passes.running.trials import Trials

Shapes = list[tuple[int, ...]]


def of_tensors(values: Any) -> Shapes:
    return [tuple(leaf.shape) for leaf in values if isinstance(leaf, Tensor)]


def trials(run: Callable[..., Any], *inputs: Any) -> Trials:
    return at_other_sizes(lambda values: run(*values), inputs)


def shapes(run: Callable[..., Any], *inputs: Any) -> list[Shapes]:
    """The shapes of the inputs at each size."""
    return [of_tensors(values) for values in trials(run, *inputs).inputs]


def test_batch_and_positions_change_together_and_by_themselves() -> None:
    run = nn.Conv2d(3, 4, 3)
    assert shapes(run, torch.zeros(2, 3, 8, 8)) == [[(2, 3, 8, 8)], [(4, 3, 16, 12)]]
    assert shapes(run, torch.zeros(1, 3, 224, 224))[1] == [(2, 3, 112, 96)]


def test_large_sizes_are_halved_and_small_ones_grow_beyond_a_stride() -> None:
    assert shapes(torch.relu, torch.zeros(1, 256, 2)) == [[(1, 256, 2)], [(2, 128, 8)]]
    assert shapes(torch.relu, torch.zeros(64, 5))[1] == [(32, 10)]


def test_what_no_trial_run_accepts_is_fixed() -> None:
    assert shapes(nn.Linear(4, 2), torch.zeros(2, 4))[1] == [(4, 4)]
    assert shapes(lambda x: x.view(2, 4), torch.zeros(2, 4)) == [[(2, 4)]]


def test_sizes_of_two_inputs_change_together() -> None:
    run = lambda x, y, scale: x + y * scale  # noqa: E731
    assert shapes(run, torch.zeros(2, 5), torch.zeros(2, 5), 3)[1] == [(4, 10), (4, 10)]


def test_equal_sizes_that_mean_different_things() -> None:
    run = lambda x: x @ torch.zeros(4, 2)  # noqa: E731
    assert shapes(run, torch.zeros(1, 4, 4))[1] == [(2, 8, 4)]
    apart = lambda x, y: x.sum(1) + y.sum(1)  # noqa: E731
    assert shapes(apart, torch.zeros(2, 6), torch.zeros(2, 6))[1] == [(4, 12), (4, 9)]


def test_a_length_of_some_inputs_that_another_size_equals_by_chance() -> None:
    """States of 4 numbers at 4 steps, and actions of 3."""
    run = lambda states, actions: states @ torch.zeros(4, 3) + actions  # noqa: E731
    assert shapes(run, torch.zeros(2, 4, 4), torch.zeros(2, 4, 3))[1] == [(4, 8, 4), (4, 8, 3)]


def test_two_pairs_of_lengths_that_are_alike_by_chance() -> None:
    def run(x: Tensor, its_mask: Tensor, y: Tensor, other_mask: Tensor) -> Tensor:
        return (x * its_mask).sum(1) + (y * other_mask).sum(1)

    (_, (x, its_mask, y, other_mask)) = shapes(run, *[torch.ones(2, 6)] * 4)
    assert x == its_mask
    assert y == other_mask
    assert x != y


def test_steps_first_and_a_mask_that_has_the_batch_first() -> None:
    run = lambda x, mask: x * mask.T[:, :, None]  # noqa: E731
    assert shapes(run, torch.zeros(5, 2, 3), torch.zeros(2, 5))[1] == [(10, 8, 12), (8, 10)]


def test_lengths_that_differ_and_go_together() -> None:
    run = lambda x, y: x[:, ::2] + y  # noqa: E731
    assert shapes(run, torch.zeros(2, 8), torch.zeros(2, 4))[1] == [(4, 12), (4, 6)]


def test_sizes_that_a_model_takes_only_in_certain_steps() -> None:
    def windows(x: Tensor) -> Tensor:
        assert x.shape[1] % 32 == 0
        assert 60 < x.shape[1] < 100
        return x

    assert shapes(windows, torch.zeros(1, 96)) == [[(1, 96)], [(2, 96)]]
    found = trials(windows, torch.zeros(1, 64))
    assert [of_tensors(values) for values in found.inputs] == [[(1, 64)], [(2, 96)]]
    assert found.limits == {}


def test_changes_that_only_work_alone_make_an_example_each() -> None:
    def either(x: Tensor) -> Tensor:
        assert x.shape[0] == 2 or x.shape[1] == 5
        return x

    assert shapes(either, torch.zeros(2, 5)) == [[(2, 5)], [(2, 10)], [(4, 5)]]


def test_a_size_at_which_samples_lose_their_results_is_fixed() -> None:
    flatten = lambda x: x.view(-1, 4 * 3 * 3)  # noqa: E731
    assert shapes(flatten, torch.zeros(2, 4, 3, 3)) == [[(2, 4, 3, 3)], [(4, 4, 3, 3)]]


@pytest.mark.parametrize("size", [40, 41, 42, 43])
def test_a_dimension_that_varies_a_little_is_seen_at_its_farthest(size: int) -> None:
    """Two poolings make 10 of 40 to 43."""
    run = lambda x: F.max_pool1d(F.max_pool1d(x, 2), 2) @ torch.zeros(10, 1)  # noqa: E731
    found = trials(run, torch.zeros(2, 3, size))
    assert found.limits == {(0, 2): (40, 43)}
    assert of_tensors(found.inputs[1])[0][2] == (43 if size < 42 else 40)
    assert {of_tensors(check.inputs)[0][2] for check in found.checks} >= {40, 43}


def test_checks_are_further_sizes_with_what_the_model_returns() -> None:
    found = trials(nn.Conv1d(2, 3, 3, stride=4), torch.randn(2, 2, 30))
    seen = {of_tensors(check.inputs)[0] for check in found.checks}
    assert len(seen) >= 3
    assert seen.isdisjoint({of_tensors(values)[0] for values in found.inputs})
    assert min(shape[2] for shape in seen) < 30 < 60 < max(shape[2] for shape in seen)
    assert {shape[0] for shape in seen} >= {1, 3}


def test_checks_of_a_model_that_takes_sizes_in_steps() -> None:
    run = lambda x: x.view(len(x), -1, 16).sum(-1)  # noqa: E731
    found = trials(run, torch.randn(1, 96))
    assert {of_tensors(check.inputs)[0] for check in found.checks} >= {(2, 32), (1, 128)}


def test_inputs_without_sizes() -> None:
    assert at_other_sizes(lambda values: None, (3, torch.zeros(()))).inputs == [(3, torch.zeros(()))]


def test_inputs_that_run_only_once() -> None:
    x = torch.zeros(2, 3)
    runs = iter([None])
    assert len(at_other_sizes(lambda values: next(runs), (x,)).inputs) == 1


def test_values_are_those_of_the_inputs() -> None:
    x = torch.arange(6).view(2, 3)
    (_, (other,)) = at_other_sizes(lambda values: None, (x,)).inputs
    assert set(other.flatten().tolist()) == set(range(6))


def test_arguments_by_name() -> None:
    found = at_other_sizes(lambda example: example["x"] + 1, {"scale": 2, "x": torch.zeros(2, 5)})
    assert found.inputs[1]["x"].shape == (4, 10)


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
    assert trials(takes_widths(4, 6), torch.ones(2, 4)).limits == {}
    assert shapes(takes_widths(4, 6), torch.ones(2, 4)) == [[(2, 4)], [(2, 6)]]
