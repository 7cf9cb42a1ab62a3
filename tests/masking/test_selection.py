"""Which weights are masked, and the ``dense=`` argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import nn
from torch.nn import functional as F

import sparsefx
from sparsefx import ArgumentError
from sparsefx.masking.first_masks import random_mask
from sparsefx.masking.layers import MaskedLayer
from sparsefx.masking.masks import masked_weights
from sparsefx.masking.selection import find_candidates, select_dense


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Net(nn.Module):
    """Two blocks, a depthwise convolution, a head, and a parameter used by ``F.linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(Block(), Block())
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.projection = nn.Parameter(torch.randn(5, 4))
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.body(self.stem(x))).mean((2, 3))
        return self.head(F.linear(x, self.projection))


ALL = {"stem", "body.0.conv", "body.1.conv", "depthwise", "projection", "head"}


def is_depthwise(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def masked_names(model: nn.Module, **options: Any) -> set[str]:
    return {masked.name for masked in masked_weights(sparsefx.sparsify(model, density=0.5, **options))}


@pytest.mark.parametrize(
    ("dense", "kept"),
    [
        ((), set()),
        ([], set()),
        ("stem", {"stem"}),
        ("projection", {"projection"}),
        ("body", {"body.0.conv", "body.1.conv"}),
        ("body.1", {"body.1.conv"}),
        ("body.*", {"body.0.conv", "body.1.conv"}),
        ("*conv", {"body.0.conv", "body.1.conv"}),
        ("body.[01].conv", {"body.0.conv", "body.1.conv"}),
        ("?tem", {"stem"}),
        (nn.Linear, {"head"}),
        (nn.Conv2d, {"stem", "body.0.conv", "body.1.conv", "depthwise"}),
        (Block, {"body.0.conv", "body.1.conv"}),
        (nn.Conv3d, set()),
        (is_depthwise, {"depthwise"}),
        (lambda name, module: name in ("head", "projection"), {"head", "projection"}),
        (["stem", "*.1.*", nn.Linear, is_depthwise], {"stem", "body.1.conv", "head", "depthwise"}),
        ({"stem", "head"}, {"stem", "head"}),
        (iter(["stem"]), {"stem"}),
    ],
)
def test_dense(dense: Any, kept: set[str]) -> None:
    assert masked_names(Net(), dense=dense) == ALL - kept


def test_layers_that_stay_dense_are_plain_and_do_not_count() -> None:
    model = sparsefx.sparsify(Net(), density=0.5, dense="head")
    head = model.get_submodule("head")
    assert type(head) is nn.Linear
    assert "head.mask" not in model.state_dict()
    active = sum(int(masked.mask.sum()) for masked in masked_weights(model))
    total = sum(masked.weight.numel() for masked in masked_weights(model))
    assert active == round(total * 0.5)


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ("steam", r"dense='steam' is not known; did you mean 'stem'"),
        ("body.2.conv", r"dense='body.2.conv' is not known; did you mean .*'body.1.conv'"),
        ("zzz", r"dense='zzz' is not known; known: body, body.0, .*stem"),
        ("encoder.*", r"dense='encoder.\*' is not known"),
        (["stem", "haed"], r"dense='haed' is not known; did you mean 'head'"),
        (3, "dense=3 is not a layer name, glob, module type or predicate"),
        (None, "dense=None is not a layer name"),
        ([None], "dense=None is not a layer name"),
        (nn.Linear(2, 2), r"dense=Linear\(.* is not a layer name"),
    ],
)
def test_wrong_dense(dense: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        sparsefx.sparsify(Net(), density=0.5, dense=dense)


def test_everything_dense() -> None:
    with pytest.raises(ArgumentError, match="keeps every maskable layer of Net dense; leave some to mask"):
        sparsefx.sparsify(Net(), density=0.5, dense="*")


def test_a_name_with_glob_characters_is_a_name() -> None:
    model = nn.ModuleDict({"a[0]": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    candidates = find_candidates(model, [])
    assert select_dense(candidates, "a[0]", model) == {"a[0]"}


@pytest.mark.parametrize("dense", ["0", "2", "late", nn.Linear])
def test_a_tied_weight_is_dense_if_any_of_its_layers_is(dense: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model.late = model[2]
    candidates = find_candidates(model, [])
    assert [candidate.name for candidate in candidates] == ["0", "1"]
    assert select_dense(candidates, dense, model) == {"0"}


def test_a_module_under_two_names_answers_to_both() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["b"] = model["a"]
    for name in ("a", "b"):
        sparse = sparsefx.sparsify(model, density=0.5, dense=name, trace=False)
        assert [masked.name for masked in masked_weights(sparse)] == ["c"]


def test_candidates_are_in_module_order_without_norms_biases_and_embeddings() -> None:
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Conv1d(3, 2, 1), nn.LSTM(2, 2)
    )
    assert [candidate.name for candidate in find_candidates(model, [])] == ["1", "3"]


def test_a_weight_tied_to_an_embedding_is_no_candidate() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(5, 4))
    model[1].weight = model[0].weight
    assert [candidate.name for candidate in find_candidates(model, [])] == ["2"]


def test_a_layer_inside_attention_is_a_candidate() -> None:
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    assert [candidate.name for candidate in find_candidates(model, [])] == ["0.out_proj"]
    sparse = sparsefx.sparsify(model, density=0.5, trace=False)
    assert isinstance(sparse.get_submodule("0.out_proj"), MaskedLayer)


@properties(50)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**31))
def test_random_masks_have_exact_counts_and_follow_their_generator(
    shape: list[int], density: float, seed: int
) -> None:
    size = torch.Size(shape)
    active = round(density * size.numel())
    one, other = (random_mask(size, active, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert one.shape == size
    assert one.dtype is torch.bool
    assert int(one.sum()) == active
    assert torch.equal(one, other)


class Filtered(nn.Module):
    """A layer, and filters that no training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("blur", torch.full((4, 1, 3, 3), 1 / 9))
        self.register_buffer("mel", torch.randn(5, 4), persistent=False)
        self.table = torch.randn(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(self.conv(x), self.blur, stride=2, groups=4).mean((2, 3))
        return F.linear(x, self.mel) + F.linear(x, self.table)


def test_filters_that_are_no_parameters_stay_dense() -> None:
    model = Filtered()
    sparse = sparsefx.sparsify(model, density=0.5)
    assert [name for name, _ in sparse.named_buffers() if name.endswith("mask")] == ["conv.mask"]
    assert torch.equal(sparse.blur, model.blur)
