"""State dicts that lack masks: dense ones load, others are told; safetensors saves tied tensors once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx.masking.masks import check_invariant, detach_masks


class Tied(nn.Module):
    """The file keeps the first name in the alphabet; the model has the other one first."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.a.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(self.b(x)))


class Holder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model


def _sparse(seed: int = 0, trace: bool = True) -> nn.Module:
    return sparsefx.sparsify(Tied(), 0.3, seed=seed, trace=trace)


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_safetensors_loads_tied_layers_strictly(
    tmp_path: Path, trace: bool, copied: Callable[[nn.Module], nn.Module]
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = _sparse(0, trace), copied(_sparse(1, trace))
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    missing, unexpected = safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    assert not missing
    assert not unexpected
    assert _same(other, model)
    check_invariant(other)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dropped", [["c.mask"], ["a.mask", "b.mask"], ["a.mask"]])
def test_a_mask_that_is_missing_is_told(dropped: list[str], inside: bool) -> None:
    prefix = "inner." if inside else ""
    state = {prefix + name: value for name, value in _sparse().state_dict().items() if name not in dropped}
    model = Holder(_sparse(1)) if inside else _sparse(1)
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: .*"{prefix}{dropped[-1]}"'):
        model.load_state_dict(state)
    found = model.load_state_dict(state, strict=False)
    assert sorted(found.missing_keys) == [prefix + name for name in dropped]
    assert not found.unexpected_keys
    check_invariant(model)


@pytest.mark.parametrize("kept", ["a", "b"])
def test_a_tied_mask_under_one_name_masks_all_its_layers(kept: str) -> None:
    model, other = _sparse(0), _sparse(1)
    left_out = {"a": "b", "b": "a"}[kept]
    state = {
        name: value
        for name, value in model.state_dict().items()
        if name not in (f"{left_out}.mask", f"{left_out}.weight")
    }
    other.load_state_dict(state, strict=False)
    assert _same(other, model)


@pytest.mark.parametrize("model", [_sparse(), sparsefx.sparsify(nn.Linear(6, 6), 0.5)])
def test_dense_checkpoints_lack_nothing(model: nn.Module) -> None:
    dense = {name: torch.ones_like(v) for name, v in model.state_dict().items() if not name.endswith("mask")}
    for strict in (True, False):
        assert list(model.load_state_dict(dense, strict=strict)) == [[], []]
    check_invariant(model)


def test_a_model_without_its_masks_expects_none() -> None:
    model = _sparse()
    for module in model.modules():
        detach_masks(module)
    assert not model._load_state_dict_pre_hooks
