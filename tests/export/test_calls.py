"""How models are called: arguments by name, flags, signatures, a __call__ of their own, buffers resized."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.errors import ArgumentError


class ByName(nn.Module):
    """A forward whose arguments go by name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, *, x: Tensor, scale: Tensor | None = None, twice: bool = False) -> Tensor:
        y = self.two(F.relu(self.one(x)))
        y = y if scale is None else y * scale
        return 2 * y if twice else y


class Mixed(ByName):
    def forward(self, x: Tensor, rest: Tensor, *, scale: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x))) * scale + rest


def _shrinkable(model: nn.Module) -> nn.Module:
    sparse = sparsefx.sparsify(model, 1.0, trace=False)
    with torch.no_grad():
        sparse.get_submodule("one").mask[5:] = False
    sparsefx.apply_masks(sparse)
    return sparse.double().eval()


@pytest.mark.parametrize("traced", [False, True])
def test_a_forward_by_name_alone_is_exported(traced: bool) -> None:
    model = _shrinkable(ByName())
    call = {"x": torch.randn(3, 4, dtype=torch.float64), "scale": torch.randn(3, 1, dtype=torch.float64)}
    if traced:
        compact = sparsefx.export(model, example_kwargs=call)
    else:
        compact = sparsefx.export(model, (), example_kwargs=call, fold_batchnorm=False)
    assert compact.get_submodule("one").out_features == 5
    for rows in (1, 3, 7):
        other = {name: torch.randn(rows, value.shape[1], dtype=torch.float64) for name, value in call.items()}
        torch.testing.assert_close(compact(**other), model(**other), rtol=1e-11, atol=1e-11)
    with pytest.raises(TypeError, match="Give it such a value among the example inputs"):
        compact(**call, twice=True)
    twice = sparsefx.export(model, example_kwargs={**call, "twice": True})
    torch.testing.assert_close(twice(**call, twice=True), model(**call, twice=True), rtol=1e-11, atol=1e-11)


def test_some_arguments_by_name() -> None:
    model = _shrinkable(Mixed())
    x, rest = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    compact = sparsefx.export(model, (x, rest), example_kwargs={"scale": rest})
    assert compact.get_submodule("one").out_features == 5
    expected = model(x, rest, scale=rest)
    torch.testing.assert_close(compact(x, rest, scale=rest), expected, rtol=1e-11, atol=1e-11)


def test_reports_and_sparsify_take_arguments_by_name() -> None:
    call = {"x": torch.randn(3, 4)}
    model = sparsefx.sparsify(ByName(), 0.5, example_kwargs=call)
    assert sparsefx.report(model, example_kwargs=call).layers[0].flops_dense == 128
    compact = sparsefx.export(model, example_kwargs=call)
    change = sparsefx.report(model, compact, example_kwargs=call).layers[0]
    assert change.before.flops_dense == 128


@pytest.mark.parametrize("given", [[torch.ones(1)], {1: torch.ones(1)}, torch.ones(1)])
def test_arguments_by_name_that_have_none(given: Any) -> None:
    with pytest.raises(ArgumentError, match=r"example_kwargs must be arguments by name like .*, got"):
        sparsefx.export(sparsefx.sparsify(ByName(), 0.5), (), example_kwargs=given)


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
        y = self.layer(x) if mask is None else self.layer(x) * mask
        return 2 * y if twice else y


def test_a_sparsified_model_names_its_own_remedy_for_flags() -> None:
    model = sparsefx.sparsify(Flagged(), 0.5)
    with pytest.raises(TypeError, match=r"'twice' was traced as False .* sparsify\(model, trace=False\)"):
        model(torch.ones(1, 4), twice=True)
    free = sparsefx.sparsify(Flagged(), 0.5, trace=False)
    free(torch.ones(1, 4), twice=True)
    compact = sparsefx.export(model, (torch.ones(1, 4),))
    with pytest.raises(TypeError, match="among the example inputs"):
        compact(torch.ones(1, 4), twice=True)


def test_a_sparsified_model_keeps_its_signature() -> None:
    model = sparsefx.sparsify(Flagged(), 0.5)
    assert list(inspect.signature(model.forward).parameters) == ["x", "mask", "twice"]
    assert inspect.signature(model.forward).parameters["twice"].default is False
    copied = model.train().eval()
    assert list(inspect.signature(copied.forward).parameters) == ["x", "mask", "twice"]


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_takes_shapes_by_the_models_own_names(strict: bool) -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), 0.5).eval()
    x, batch = torch.randn(3, 4), torch.export.Dim("batch")
    names = list(inspect.signature(model.forward).parameters)
    assert names == ["input"]
    program = torch.export.export(model, (x,), dynamic_shapes={"input": {0: batch}}, strict=strict)
    torch.testing.assert_close(program.module()(torch.ones(5, 4)), model(torch.ones(5, 4)))


class Called(Flagged):
    """A class that does something around its forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 100 * super().__call__(*args, **kwargs)


def test_a_call_of_its_own_is_not_lost() -> None:
    x, model = torch.randn(2, 4), Called()
    with pytest.warns(UserWarning, match="has a __call__ of its own"):
        sparse = sparsefx.sparsify(model, 1.0)
    torch.testing.assert_close(sparse(x), model(x))
    assert isinstance(sparse, Called)


class Harmless(Flagged):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def test_a_call_of_its_own_is_tried_on_examples() -> None:
    assert isinstance(
        sparsefx.sparsify(Harmless(), 1.0, example_inputs=(torch.ones(2, 4),)), torch.fx.GraphModule
    )


class Resizing(nn.Module):
    """A forward that makes a buffer as long as its input, and fails if told to."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.layer, self.fails = nn.Linear(4, 4), fails
        self.register_buffer("cache", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.cache.resize_(x.shape[0])
        self.cache.fill_(7)
        if self.fails:
            raise RuntimeError("the table of positions is too short")
        return self.layer(x)


def test_the_error_of_a_forward_that_resizes_a_buffer_is_shown() -> None:
    with pytest.raises(ArgumentError, match="do not run through the model: the table of positions"):
        sparsefx.export(sparsefx.sparsify(Resizing(True), 0.5, trace=False), (torch.ones(3, 4),))


@pytest.mark.filterwarnings("ignore:export. the model was returned whole")
def test_a_resized_buffer_is_left_as_it_was() -> None:
    model = sparsefx.sparsify(Resizing(False), 0.5, trace=False)
    compact = sparsefx.export(model, (torch.ones(3, 4),))
    assert model.cache.tolist() == [0]
    torch.testing.assert_close(compact(torch.ones(5, 4)), model(torch.ones(5, 4)))
