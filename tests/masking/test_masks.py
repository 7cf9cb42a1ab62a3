"""Masked weights: the invariant, tied weights, names, and parameters outside layers."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from helpers import masked_conv_net, masked_mlp
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import sparsefx
from sparsefx import ArgumentError, InvariantError
from sparsefx.masking.mask_record import has_masks, mask_of
from sparsefx.masking.mask_values import zero_outside
from sparsefx.masking.masks import apply_masks, attach_mask, check_invariant, detach_masks, masked_weights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


class Projection(nn.Module):
    """Uses its parameters through ``F.linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 4))
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.first), self.weight)


class Wrapper(nn.Module):
    """A model with a child that is called ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = masked_mlp(4, 4)
        self.add_module("0", masked_mlp(4, 4)[0])


def tied_pair() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def scramble(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)


def test_apply_masks_restores_the_invariant_after_an_edit_of_the_weights() -> None:
    model = masked_conv_net()
    scramble(model)
    apply_masks(model)
    for masked in masked_weights(model):
        assert torch.equal(masked.weight, masked.mask.float())


def test_apply_masks_restores_the_invariant_after_an_edit_of_the_masks() -> None:
    model = masked_mlp(6, 5, 4)
    for masked in masked_weights(model):
        masked.mask.zero_()
    apply_masks(model)
    assert all(not masked.weight.any() for masked in masked_weights(model))


def test_apply_masks_touches_nothing_else() -> None:
    model = masked_conv_net()
    before = copy.deepcopy(model.state_dict())
    apply_masks(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf])
def test_check_invariant_names_the_layers(value: float) -> None:
    model = masked_mlp(6, 5, 4)
    check_invariant(model)
    weight, mask = model[2].weight, model[2].mask
    with torch.no_grad():
        weight[~mask] = value
    with pytest.raises(InvariantError, match=r"mask is False in 2; call sparsefx.apply_masks"):
        check_invariant(model)
    apply_masks(model)
    check_invariant(model)


@properties(60)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.sampled_from(DTYPES), st.booleans())
def test_zero_outside_is_exact(active: list[bool], dtype: torch.dtype, transposed: bool) -> None:
    mask = torch.tensor([active, active[::-1]])
    special = torch.tensor([1.5, -2.0, torch.inf, -torch.inf, torch.nan, -0.0, 1e-30, 3.0])
    weight = special.repeat(len(active))[: mask.numel()].view(mask.shape).to(dtype)
    if transposed:
        weight, mask = weight.t(), mask.t()
    expected = torch.where(mask, weight, torch.zeros((), dtype=dtype))
    zero_outside(weight, mask)
    assert torch.equal(weight.isnan(), expected.isnan())
    assert torch.equal(
        torch.nan_to_num(torch.view_as_real(weight) if dtype.is_complex else weight),
        torch.nan_to_num(torch.view_as_real(expected) if dtype.is_complex else expected),
    )


def test_zero_outside_takes_any_memory_format() -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    mask = torch.rand(4, 3, 3, 3) < 0.5
    expected = weight * mask
    zero_outside(weight, mask)
    assert torch.equal(weight, expected)


def test_set_mask_zeroes_what_it_excludes_and_copies_the_mask() -> None:
    model = masked_mlp(4, 3, density=1)
    masked = masked_weights(model)[0]
    mask = torch.rand(3, 4) < 0.5
    buffer = masked.mask
    masked.set_mask(mask)
    assert masked.mask is buffer
    assert torch.equal(masked.weight != 0, mask)
    assert masked.density == float(mask.sum()) / 12
    assert masked.is_enforced()


@pytest.mark.parametrize("change", ["nothing", "dtype", "deepcopy", "pickle", "load"])
def test_a_tied_weight_has_one_mask(change: str) -> None:
    model: nn.Module = sparsefx.sparsify(tied_pair(), density=0.5)
    if change == "dtype":
        model = model.double()
    elif change == "deepcopy":
        model = copy.deepcopy(model)
    elif change == "pickle":
        model = pickle.loads(pickle.dumps(model))
    elif change == "load":
        model.load_state_dict(tied_pair().state_dict())
    (masked,) = masked_weights(model)
    assert masked.name == "0"
    assert len(masked.holders) == 2
    first, second = model.get_submodule("0"), model.get_submodule("2")
    assert first.weight is second.weight
    new_mask = torch.eye(4, dtype=torch.bool)
    masked.set_mask(new_mask)
    for layer in (first, second):
        assert torch.equal(layer.get_buffer("mask"), new_mask)
        assert torch.equal(layer.get_parameter("weight") != 0, new_mask & (masked.weight != 0))
    check_invariant(model)
    assert {"0.mask", "2.mask"} <= set(model.state_dict())


def test_a_tied_weight_keeps_the_count_of_one_weight() -> None:
    model = sparsefx.sparsify(tied_pair(), density=0.25)
    assert int(masked_weights(model)[0].mask.sum()) == 4


@pytest.mark.parametrize("copied", ["no", "deepcopy", "pickle"])
def test_parameters_outside_layers(copied: str) -> None:
    model: nn.Module = sparsefx.sparsify(Projection(), density=0.5)
    if copied != "no":
        model = copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
    first, second = masked_weights(model)
    assert (first.name, second.name) == ("first", "weight")
    assert {"first_mask", "mask"} <= set(model.state_dict())
    assert first.mask.sum() + second.mask.sum() == 18
    scramble(model)
    apply_masks(model)
    assert torch.equal(model.get_parameter("first"), first.mask.float())
    model.load_state_dict(Projection().state_dict())
    check_invariant(model)
    other = Projection()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("mask")})
    x = torch.randn(2, 4)
    assert torch.equal(model(x), other(x))


def test_a_model_that_is_one_layer() -> None:
    model = sparsefx.sparsify(nn.Linear(6, 4), density=0.5)
    (masked,) = masked_weights(model)
    assert masked.name == "weight"
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(nn.Linear(6, 4).state_dict())
        check_invariant(other)
        assert int((other.get_parameter("weight") != 0).sum()) == 12


def test_detaching_leaves_weights_and_restores_plain_loading() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, 2))
    attach_mask(module, "weight", torch.eye(2, dtype=torch.bool))
    assert has_masks(module)
    assert torch.equal(mask_of(module, "weight"), torch.eye(2, dtype=torch.bool))
    detach_masks(module)
    assert not has_masks(module)
    assert torch.equal(module.weight, torch.eye(2))
    module.load_state_dict({"weight": torch.ones(2, 2)})
    assert torch.equal(module.weight, torch.ones(2, 2))


def test_names_do_not_depend_on_wrappers() -> None:
    model = masked_mlp(4, 3, 2)
    names = [masked.name for masked in masked_weights(model)]
    assert names == ["0", "2"]
    compiled = torch.compile(model, backend="eager")
    parallel = nn.DataParallel(model)
    for wrapped in (compiled, parallel, nn.DataParallel(compiled), torch.compile(parallel, backend="eager")):
        assert [masked.name for masked in masked_weights(wrapped)] == names


@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_masked_weight_that_was_taken_apart_is_named(normalise: Callable[[nn.Module], nn.Module]) -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), density=0.5)
    normalise(model.get_submodule("1"))
    with pytest.raises(ArgumentError, match=r"^1 was masked and its 'weight' is a parameter no longer"):
        sparsefx.export(model, (torch.randn(1, 4),))


def test_a_child_called_module_keeps_its_name() -> None:
    assert [masked.name for masked in masked_weights(Wrapper())] == ["module.0", "0"]


def test_a_whole_dtype_of_the_model_changes_in_place_without_a_warning() -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2)), density=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.half().float().double()
    check_invariant(model)
    assert all(masked.mask.dtype is torch.bool for masked in masked_weights(model))
