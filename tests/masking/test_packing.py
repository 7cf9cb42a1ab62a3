"""A masked parameter packed and dense: what it holds, what optimizers keep of it, and who sees which."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import reloaded
from hypothesis import given
from hypothesis import strategies as st
from processes import run_source
from properties import properties
from torch import Tensor, nn

import sparsefx
from sparsefx.masking.masks import MaskedWeight, masked_weights
from sparsefx.masking.packing import (
    attach_packing,
    detach_packings,
    packing_of,
    packings,
    unpack_all,
)


def packed_model(density: float = 0.4) -> tuple[nn.Module, MaskedWeight]:
    """One masked layer (6, 5) and its bias, whose weight can be packed."""
    torch.manual_seed(0)
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(5, 6)), density, seed=1)
    (masked,) = masked_weights(model)
    attach_packing(masked.holders)
    return model, masked


def raw_weight(model: nn.Module) -> nn.Parameter:
    """The parameter as it is, packed or not."""
    return model.get_parameter("0.weight")


@properties(60)
@given(st.integers(0, 2**31), st.floats(0.2, 1), st.sampled_from([torch.float32, torch.float64]))
def test_packs_active_values_in_flat_order_and_back(seed: int, density: float, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    model = sparsefx.sparsify(nn.Sequential(nn.Conv2d(3, 4, 2, bias=False)), density).to(dtype)
    (masked,) = masked_weights(model)
    before, mask = masked.weight.detach().clone(), masked.mask.clone()
    gradient = torch.randn_like(before)
    masked.weight.grad = gradient.clone()
    packing = attach_packing(masked.holders)
    packing.pack()
    parameter = raw_weight(model)
    assert packing.is_packed
    assert torch.equal(parameter.detach(), before[mask])
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, gradient[mask])
    assert torch.equal(packing.positions, mask.flatten().nonzero().flatten())
    packing.unpack()
    assert raw_weight(model) is parameter
    assert torch.equal(parameter.detach(), before)
    assert torch.equal(parameter.grad, gradient * mask)


def test_reading_a_masked_weight_unpacks_it() -> None:
    model, masked = packed_model()
    dense = masked.weight.detach().clone()
    packing = packings(model)[0]
    packing.pack()
    assert raw_weight(model).shape == (12,)
    assert torch.equal(masked.weight.detach(), dense)
    assert not packing.is_packed


def test_positions_follow_the_mask() -> None:
    model, masked = packed_model()
    packing = packings(model)[0]
    packing.pack()
    version, positions = packing.version, packing.positions
    unpack_all(model)
    packing.pack()
    assert packing.version == version
    masked.set_mask(~masked.mask)
    packing.pack()
    assert packing.version == version + 1
    assert not set(positions.tolist()) & set(packing.positions.tolist())
    assert int(raw_weight(model).detach().count_nonzero()) == 0  # what was grown begins at 0


def test_state_dicts_are_dense_and_load_into_packed_models() -> None:
    model, masked = packed_model()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packings(model)[0].pack()
    found = model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    packings(model)[0].pack()
    other = {**expected, "0.weight": 2 * expected["0.weight"], "0.mask": expected["0.mask"].roll(1, 0)}
    model.load_state_dict(other)
    assert torch.equal(masked.weight.detach(), other["0.weight"] * other["0.mask"])


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_what_an_optimizer_keeps_changes_along(make: Any) -> None:
    """Packed and dense steps give the same weights, and the optimizer's state has the weight's shape."""
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
    options |= {"momentum": 0.9} if make is torch.optim.SGD else {}
    model, masked = packed_model()
    plain = sparsefx.sparsify(nn.Sequential(nn.Linear(5, 6)), 0.4, seed=1)
    plain.load_state_dict(model.state_dict())
    optimizers = make(model.parameters(), **options), make(plain.parameters(), **options)
    packing = packings(model)[0]
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        if step == 4:
            unpack_all(model)
        else:
            packing.pack()
        gradient = torch.randn(6, 5, generator=generator) * masked_weights(plain)[0].mask
        parameter = raw_weight(model)
        parameter.grad = gradient.flatten()[packing.positions] if packing.is_packed else gradient.clone()
        raw_weight(plain).grad = gradient
        for optimizer in optimizers:
            optimizer.step()
        kept = [
            value
            for value in optimizers[0].state[parameter].values()
            if isinstance(value, Tensor) and value.dim()
        ]
        assert kept
        assert all(value.shape == parameter.shape for value in kept)
    state, other = (optimizer.state_dict()["state"][0] for optimizer in optimizers)
    for name, value in other.items():
        assert torch.equal(torch.as_tensor(state[name]), torch.as_tensor(value)), name
    assert torch.equal(masked.weight.detach(), raw_weight(plain).detach())


def test_optimizers_that_look_at_a_whole_weight_keep_it_dense() -> None:
    class Muon(torch.optim.SGD):
        """Named as one that does."""

    model, _ = packed_model()
    optimizer = Muon(model.parameters(), lr=0.1)
    packing = packings(model)[0]
    packing.pack()
    raw_weight(model).grad = torch.ones(12)
    optimizer.step()
    assert packing.hold_dense
    assert raw_weight(model).shape == (6, 5)


def test_copies_and_pickles_are_packed_for_themselves() -> None:
    model, _ = packed_model()
    packings(model)[0].pack()
    for other in (copy.deepcopy(model), reloaded(model)):
        assert torch.equal(raw_weight(other), raw_weight(model))
        unpack_all(other)
        assert raw_weight(other).shape == (6, 5)
    assert raw_weight(model).shape == (12,)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step along ones, with the weight as it is, packed or not."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, reloaded])
@pytest.mark.parametrize("packs", [True, False])
def test_the_optimizer_of_a_packed_copy_is_found(duplicate: Any, packs: bool) -> None:
    """A copy that is packed already packs no more, and its first call may as well be to unpack."""
    model, _ = packed_model()
    packings(model)[0].pack()
    copied = duplicate(model)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1, momentum=0.9)
    if packs:
        packings(copied)[0].pack()
        stepped(copied, optimizer)
        assert optimizer.state[raw_weight(copied)]["momentum_buffer"].shape == (12,)
        assert optimizer.state_dict()["state"][0]["momentum_buffer"].shape == (6, 5)
    unpack_all(copied)
    stepped(copied, optimizer)
    packings(copied)[0].pack()
    stepped(copied, optimizer)
    assert optimizer.state[raw_weight(copied)]["momentum_buffer"].shape == (12,)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, reloaded])
def test_a_copied_optimizer_has_dense_state_dicts_before_its_first_step(duplicate: Any) -> None:
    """In whatever order both are copied."""
    model, _ = packed_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    packings(model)[0].pack()
    stepped(model, optimizer)
    copies = duplicate((model, optimizer)), duplicate((optimizer, model))[::-1]
    expected = optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert expected.shape == (6, 5)
    for copied, other in copies:
        assert raw_weight(copied).shape == (12,)
        assert torch.equal(other.state_dict()["state"][0]["momentum_buffer"], expected)
        assert raw_weight(copied).shape == (6, 5)
        packings(copied)[0].pack()
        stepped(copied, other)
        assert other.state[raw_weight(copied)]["momentum_buffer"].shape == (12,)


LOADS = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizer.step()
print(*optimizer.state_dict()["state"][0]["momentum_buffer"].shape)
"""


@pytest.mark.slow
def test_a_process_that_loads_a_packed_model_sees_its_optimizers(tmp_path: Path) -> None:
    model, _ = packed_model()
    packings(model)[0].pack()
    torch.save(model, tmp_path / "model.pt")
    done = run_source(LOADS, tmp_path, tmp_path / "model.pt")
    assert (done.stdout.strip(), done.returncode) == ("6 5", 0), done.stderr


def test_a_new_optimizer_with_packed_state_has_dense_state_dicts() -> None:
    model, _ = packed_model()
    packings(model)[0].pack()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    assert optimizer.state[raw_weight(model)]["sum"].shape == (12,)
    assert optimizer.state_dict()["state"][0]["sum"].shape == (6, 5)


def test_an_optimizer_that_stepped_before_the_first_packing_is_found() -> None:
    model, _ = packed_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stepped(model, optimizer)
    packings(model)[0].pack()
    stepped(model, optimizer)
    assert optimizer.state[raw_weight(model)]["momentum_buffer"].shape == (12,)


def test_a_parameter_group_that_is_added_later_is_found() -> None:
    model, _ = packed_model()
    optimizer = torch.optim.SGD([model.get_parameter("0.bias")], lr=0.1, momentum=0.9)
    packings(model)[0].pack()
    stepped(model, optimizer)
    optimizer.add_param_group({"params": [raw_weight(model)]})
    stepped(model, optimizer)
    unpack_all(model)
    stepped(model, optimizer)
    assert optimizer.state[raw_weight(model)]["momentum_buffer"].shape == (6, 5)


def test_models_are_not_kept_alive() -> None:
    model, masked = packed_model()
    packings(model)[0].pack()
    gone = weakref.ref(raw_weight(model))
    del model, masked
    gc.collect()
    assert gone() is None


def test_a_graph_that_is_still_alive_does_not_disturb() -> None:
    model, _ = packed_model()
    packing = packings(model)[0]
    packing.pack()
    old = raw_weight(model).square().sum()
    old.backward()
    unpack_all(model)
    raw_weight(model).grad = None
    raw_weight(model).square().sum().backward()
    gradient = raw_weight(model).grad
    assert gradient is not None
    assert gradient.shape == (6, 5)
    assert old.requires_grad


def test_detaching_leaves_a_dense_layer() -> None:
    model, _ = packed_model()
    packings(model)[0].pack()
    layer = model.get_submodule("0")
    detach_packings(layer)
    assert packing_of(layer) is None
    assert raw_weight(model).shape == (6, 5)
    assert not layer._state_dict_pre_hooks


def test_optimizers_are_not_kept_alive() -> None:
    model, _ = packed_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    packings(model)[0].pack()
    raw_weight(model).grad = torch.ones(12)
    optimizer.step()
    gone = weakref.ref(optimizer)
    del optimizer
    assert gone() is None
