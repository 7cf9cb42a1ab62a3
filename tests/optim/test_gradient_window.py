"""In which steps an accelerated model has gradients of inactive weights, and that training is the same."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import nn
from torch.nn import functional as F

import sparsefx
from sparsefx.cycle import Clock, CountedCycles, Timing
from sparsefx.errors import ArgumentError
from sparsefx.masking.packing import packings
from sparsefx.optim.gradient_window import GradientWindow
from sparsefx.optim.rules import Rules

pytest.importorskip("llvmlite")

SGD = torch.optim.SGD


def rules(name: str = "sparse-momentum", **options: Any) -> Rules:
    return sparsefx.method(name, **options).rules()


def sgd(momentum: float = 0.9) -> torch.optim.Optimizer:
    return SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=momentum)


@pytest.mark.parametrize(
    ("name", "momentum", "steps"),
    [
        ("sparse-momentum", 0.9, math.ceil(math.log(0.01) / math.log(0.9))),
        ("sparse-momentum", 0.5, 7),
        ("sparse-momentum", 0.0, 44),  # an average of our own, which keeps 0.9
        ("rigl", 0.9, 1),
        ("set", 0.9, 1),
        ("granet", 0.9, 44),  # reads the gradient, and new weights begin with their momentum
        ("dense", 0.9, 0),
        ("deep-r", 0.9, math.inf),
    ],
)
def test_the_default_follows_what_the_method_reads(name: str, momentum: float, steps: float) -> None:
    window = GradientWindow("auto", rules(name), CountedCycles(5, 10), sgd(momentum))
    assert window.steps == steps


def test_the_group_that_forgets_last_says_how_long_the_window_is() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "momentum": momentum} for momentum in (0.5, 0.9, 0.7)]
    window = GradientWindow("auto", rules(), CountedCycles(5, 10), SGD(groups, lr=0.1))
    assert window.steps == 44


@properties(60)
@given(st.integers(1, 12), st.integers(0, 6), st.integers(1, 60))
def test_counted_cycles_open_a_window_before_each(every: int, steps: int, total: int) -> None:
    window = GradientWindow(steps, rules(), CountedCycles(100, every), sgd())
    found = [window.wants(step, []) for step in range(1, total + 1)]
    expected = [(-step % every) < steps for step in range(1, total + 1)]
    assert found == expected


@properties(60)
@given(st.integers(1, 9), st.floats(0, 1), st.floats(0, 1), st.integers(1, 5), st.booleans())
def test_clocks_foresee_every_update(every: int, one: float, other: float, steps: int, at_last: bool) -> None:
    timing = Timing(every=every, first=min(one, other), last=max(one, other), at_last=at_last)
    clock = Clock(timing, 40, 10)
    due = [step for step in range(1, 60) if clock.is_due(step)]
    window = GradientWindow(steps, rules(), clock, sgd())
    for step in range(1, 60):
        following = [number for number in due if number >= step]
        wanted = bool(following) and step > following[0] - steps
        assert window.wants(step, []) == wanted


def test_calls_of_cycle_are_foreseen_from_the_last_two() -> None:
    window = GradientWindow(2, rules(), CountedCycles(10), sgd())
    assert all(window.wants(step, []) for step in range(1, 8))  # nothing is known yet
    window.forget()
    assert [window.wants(step, [7]) for step in range(8, 16)] == [False] * 5 + [True] * 3
    window.forget()
    assert [window.wants(step, [7, 10]) for step in range(11, 14)] == [False, True, True]


@pytest.mark.parametrize("window", [-1, 2.5, "always", True])
def test_other_windows_are_refused(window: Any) -> None:
    with pytest.raises(ArgumentError, match="window="):
        GradientWindow(window, rules(), CountedCycles(5, 10), sgd())


def trained(window: Any, make: Any = SGD, *, steps: int = 18, every: int | None = 6, **options: Any) -> Any:
    """A small network after some steps; ``window`` None trains it without acceleration."""
    torch.manual_seed(0)
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4)), 0.3, seed=1)
    if window is not None:
        model = sparsefx.accelerate(model, (torch.ones(8, 12),), kernels="sparse")
    else:
        window = "auto"
    options = options or {"lr": 0.1, "momentum": 0.9}
    wrapped = make(model.parameters(), **options)
    optimizer = sparsefx.SparseMomentum(wrapped, model, cycles=3, every=every, seed=2, window=window)
    generator = torch.Generator().manual_seed(3)
    shapes = []
    for _ in range(steps):
        x, y = torch.randn(8, 12, generator=generator), torch.randint(4, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        shapes.append(model.get_parameter("0.weight").dim())
        optimizer.step()
    return model, optimizer, shapes


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SGD, {"lr": 0.1, "momentum": 0.9}),
        (SGD, {"lr": 0.1}),
        (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
        (torch.optim.Adam, {"lr": 0.01, "foreach": True}),
    ],
)
def test_a_full_window_trains_as_without_acceleration(make: Any, options: dict[str, Any]) -> None:
    model, optimizer, shapes = trained("auto", make, **options)
    plain, other, _ = trained(None, make, **options)
    assert set(shapes) == {2}
    for (name, value), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=name)
    state, known = optimizer.state_dict()["state"], other.state_dict()["state"]
    for index, values in known.items():
        for name, value in values.items():
            if value is not None:
                torch.testing.assert_close(state[index][name], value, rtol=1e-3, atol=1e-5)


def test_weights_are_dense_in_the_window_alone() -> None:
    _, optimizer, shapes = trained(2)
    assert shapes == [1, 1, 1, 1, 2, 2] * 3
    assert [record.step for record in optimizer.history] == [6, 12, 18]


def test_a_run_continues_from_its_state_dicts_bit_for_bit() -> None:
    model, optimizer, _ = trained(2, steps=16)
    half, begun, _ = trained(2, steps=8)
    again, resumed, _ = trained(2, steps=0)
    again.load_state_dict(half.state_dict())
    resumed.load_state_dict(begun.state_dict())
    generator = torch.Generator().manual_seed(3)
    for step in range(16):
        x, y = torch.randn(8, 12, generator=generator), torch.randint(4, (8,), generator=generator)
        if step >= 8:
            resumed.zero_grad()
            F.cross_entropy(again(x), y).backward()
            resumed.step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert resumed.steps_done == optimizer.steps_done


@pytest.mark.parametrize("steps", [2, 8])
def test_a_copied_run_goes_on_like_the_one_it_was_copied_from(steps: int) -> None:
    """The copy comes packed, with the optimizer's state packed, and nothing registered."""
    model, optimizer, _ = trained(2, steps=steps)
    runs = [(model, optimizer), copy.deepcopy((model, optimizer))]
    assert any(packing.is_packed for packing in packings(model))
    at_once = [wrapper.state_dict()["state"] for _, wrapper in runs]
    for index, state in at_once[0].items():
        assert torch.equal(state["momentum_buffer"], at_once[1][index]["momentum_buffer"])
    for network, wrapper in runs:
        generator = torch.Generator().manual_seed(5)
        for _ in range(12):
            x, y = torch.randn(8, 12, generator=generator), torch.randint(4, (8,), generator=generator)
            wrapper.zero_grad()
            F.cross_entropy(network(x), y).backward()
            wrapper.step()
    one, other = (network.state_dict() for network, _ in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [wrapper.state_dict()["state"] for _, wrapper in runs]
    for index, state in states[0].items():
        assert torch.equal(state["momentum_buffer"], states[1][index]["momentum_buffer"])


def test_a_cycle_before_its_window_warns() -> None:
    model, optimizer, _ = trained(2, steps=2)
    assert all(packing.is_packed for packing in packings(model))
    with pytest.warns(UserWarning, match="earlier than foreseen"):
        optimizer.cycle()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(2, steps=6)


def test_every_method_that_trains_masks_trains_packed() -> None:
    """RigL needs one dense step, and masks stay exact."""
    network = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))
    training = sparsefx.Training(
        sparsefx.method("rigl", density=0.3, every=5),
        network,
        lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
        steps=20,
        epoch_steps=20,
        seed=0,
        kernels="sparse",
        example_inputs=(torch.ones(8, 12),),
    )
    dims = []
    for _ in range(training.steps):
        training.optimizer.zero_grad()
        F.cross_entropy(training.model(torch.randn(8, 12)), torch.randint(4, (8,))).backward()
        dims.append(training.model.get_parameter("0.weight").dim())
        training.optimizer.step()
    assert 1 in dims
    assert dims[4] == 2
    masks = [masked.mask for masked in sparsefx.masked_weights(training.finish())]
    assert sum(int(mask.sum()) for mask in masks) == round(0.3 * sum(mask.numel() for mask in masks))


def test_methods_with_a_regulariser_refuse_sparse_kernels() -> None:
    method = next(one for one in sparsefx.METHODS.values() if one.penalty is not None)
    with pytest.raises(ArgumentError, match="regulariser"):
        sparsefx.Training(
            method,
            nn.Sequential(nn.Linear(4, 4)),
            lambda parameters: SGD(parameters, lr=0.1),
            steps=2,
            epoch_steps=2,
            samples=8,
            kernels="sparse",
            example_inputs=(torch.ones(2, 4),),
        )
