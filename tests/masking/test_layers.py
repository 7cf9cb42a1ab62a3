"""Masked layers: the plain layer's forward, a mask beside the weight, the invariant in every copy."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from helpers import random_mask
from torch import nn

from sparsefx.masking.layers import (
    MASKABLE,
    MaskedConv2d,
    MaskedLayer,
    MaskedLinear,
    mask_layer,
    masked_class,
    unmask_layer,
)
from sparsefx.masking.masks import check_invariant, masked_weights

LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "linear": (nn.Linear, {"in_features": 6, "out_features": 4}, (3, 6)),
    "linear_no_bias": (nn.Linear, {"in_features": 6, "out_features": 4, "bias": False}, (2, 3, 6)),
    "conv1d": (nn.Conv1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2}, (2, 4, 7)),
    "conv2d": (nn.Conv2d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 5, 5)),
    "depthwise": (
        nn.Conv2d,
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4},
        (2, 4, 5, 5),
    ),
    "conv3d": (
        nn.Conv3d,
        {"in_channels": 2, "out_channels": 4, "kernel_size": 2, "groups": 2},
        (1, 2, 3, 3, 3),
    ),
    "transpose1d": (nn.ConvTranspose1d, {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 5)),
    "transpose2d": (
        nn.ConvTranspose2d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "stride": 2},
        (2, 4, 3, 3),
    ),
    "transpose3d": (
        nn.ConvTranspose3d,
        {"in_channels": 2, "out_channels": 2, "kernel_size": 2},
        (1, 2, 2, 2, 2),
    ),
    **{
        f"conv2d_{mode}": (
            nn.Conv2d,
            {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1, "padding_mode": mode},
            (2, 2, 5, 5),
        )
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
}


class ScaledLinear(nn.Linear):
    """A user's own layer, with an attribute and a forward of its own."""

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__(inputs, outputs)
        self.scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.scale


class LinearWithMask(nn.Linear):
    """A user's layer whose own attribute is called ``mask``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.ones(outputs))


def build(name: str) -> tuple[Any, nn.Module, torch.Tensor, torch.Tensor]:
    """A masked layer, its plain original with the same weights, the mask and an input."""
    torch.manual_seed(0)
    kind, options, shape = LAYERS[name]
    layer = kind(**options)
    mask = random_mask(layer.weight.shape, 0.4, torch.Generator().manual_seed(1))
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.mul_(mask)
    mask_layer(layer, mask)
    return layer, plain, mask, torch.randn(shape)


def assert_same_layer(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    assert torch.equal(actual.mask, expected.mask)
    assert torch.equal(actual.weight, expected.weight)
    check_invariant(actual)


@pytest.mark.parametrize("name", LAYERS)
def test_a_masked_layer_is_the_plain_layer_with_zeros(name: str) -> None:
    layer, plain, mask, x = build(name)
    assert isinstance(layer, type(plain))
    assert isinstance(layer, MaskedLayer)
    assert type(layer).__name__ == f"Masked{type(plain).__name__}"
    assert type(layer).forward is type(plain).forward
    assert layer.mask.dtype is torch.bool
    assert layer.mask.shape == layer.weight.shape
    assert "mask" in dict(layer.named_buffers())
    assert torch.equal(layer.weight != 0, mask)
    assert torch.equal(layer(x), plain(x))
    layer(x).sum().backward()
    plain(x).sum().backward()
    assert torch.equal(layer.weight.grad, plain.get_parameter("weight").grad)


def test_every_maskable_kind_is_tested_and_has_a_named_class() -> None:
    assert {kind for kind, _, _ in LAYERS.values()} == set(MASKABLE)
    for kind in MASKABLE:
        assert masked_class(kind).__module__ == "sparsefx.masking.layers"


@pytest.mark.parametrize("name", LAYERS)
def test_copies_keep_the_class_the_mask_and_the_invariant(name: str) -> None:
    layer, _, _, x = build(name)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert_same_layer(other, layer)
        assert torch.equal(other(x), layer(x))
        other.load_state_dict({**layer.state_dict(), "weight": torch.ones_like(layer.weight)})
        check_invariant(other)
        assert int((other.weight != 0).sum()) == int(layer.mask.sum())
    check_invariant(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_a_dense_checkpoint_loads_and_is_masked(name: str) -> None:
    layer, plain, mask, _ = build(name)
    dense = {key: torch.ones_like(value) for key, value in plain.state_dict().items()}
    assert list(layer.load_state_dict(dense, strict=True)) == [[], []]
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight, mask.float())
    assert all(bool((value == 1).all()) for value in dense.values())


def test_a_checkpoint_brings_its_mask() -> None:
    layer, _, mask, _ = build("conv2d")
    other, _, _, _ = build("conv2d")
    mask_of_other = ~mask
    other.load_state_dict(
        {**layer.state_dict(), "mask": mask_of_other, "weight": torch.ones_like(layer.weight)}
    )
    assert torch.equal(other.mask, mask_of_other)
    assert torch.equal(other.weight, mask_of_other.float())


def test_a_mask_alone_masks_the_present_weight() -> None:
    layer, _, mask, _ = build("linear")
    layer.load_state_dict({"mask": torch.zeros_like(mask)}, strict=False)
    assert not layer.mask.any()
    check_invariant(layer)


@pytest.mark.parametrize(("key", "shape"), [("weight", (2, 2)), ("mask", (2, 2))])
def test_the_invariant_survives_a_refused_checkpoint(key: str, shape: tuple[int, ...]) -> None:
    layer, _, mask, _ = build("linear")
    state = {"weight": torch.ones(4, 6), "mask": ~mask, "bias": torch.zeros(4)}
    state[key] = torch.ones(shape, dtype=state[key].dtype)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(state)
    check_invariant(layer)


@pytest.mark.parametrize("with_mask", [True, False])
def test_assign_leaves_the_checkpoint_alone(with_mask: bool) -> None:
    layer, _, mask, _ = build("linear")
    state = {"weight": torch.ones(4, 6), "bias": torch.ones(4)}
    if with_mask:
        state["mask"] = ~mask
    before = copy.deepcopy(state)
    layer.load_state_dict(state, assign=True)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert torch.equal(layer.weight != 0, ~mask if with_mask else mask)
    assert layer.bias.data_ptr() == state["bias"].data_ptr()
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.requires_grad


def test_a_nan_outside_the_mask_is_dropped() -> None:
    layer, _, mask, _ = build("linear")
    layer.load_state_dict({"weight": torch.full((4, 6), torch.nan), "bias": torch.zeros(4)})
    assert torch.equal(layer.weight.isnan(), mask)
    check_invariant(layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_keeps_mask_and_invariant(dtype: torch.dtype) -> None:
    layer, _, mask, _ = build("conv2d")
    layer.to(dtype)
    assert layer.weight.dtype is dtype
    assert layer.mask.dtype is torch.bool
    assert torch.equal(layer.weight != 0, mask)


def test_a_mask_costs_one_byte_a_weight_and_nothing_else() -> None:
    layer, plain, _, _ = build("conv2d")
    assert layer.mask.element_size() == 1
    assert set(layer.state_dict()) - set(plain.state_dict()) == {"mask"}
    assert len(list(layer.parameters())) == len(list(plain.parameters()))


def test_a_subclass_keeps_its_attributes_and_forward() -> None:
    layer: Any = ScaledLinear(4, 4, 3.0)
    mask = torch.eye(4, dtype=torch.bool)
    mask_layer(layer, mask)
    x = torch.randn(2, 4)
    expected = nn.functional.linear(x, layer.weight, layer.bias) * 3
    assert isinstance(layer, ScaledLinear)
    assert isinstance(layer, MaskedLayer)
    assert type(layer) is masked_class(ScaledLinear)
    assert torch.equal(layer(x), expected)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_layer(other, layer)
        assert other.scale == 3
        assert torch.equal(other(x), expected)
        other.load_state_dict(ScaledLinear(4, 4, 3.0).state_dict())
        check_invariant(other)


def test_a_subclass_with_an_attribute_called_mask_keeps_it() -> None:
    layer = LinearWithMask(4, 3)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask_layer(layer, mask)
    assert torch.equal(layer.get_buffer("mask"), torch.ones(3))
    assert torch.equal(layer.get_buffer("weight_mask"), mask)
    assert "density=0" in repr(layer)
    check_invariant(layer)


def test_unmasking_gives_the_plain_layer_back() -> None:
    layer, plain, mask, x = build("conv2d")
    unmask_layer(layer)
    assert type(layer) is nn.Conv2d
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert torch.equal(layer(x), plain(x))
    layer.load_state_dict({key: torch.ones_like(value) for key, value in plain.state_dict().items()})
    assert bool((layer.weight == 1).all())
    mask_layer(layer, mask)
    assert torch.equal(layer.weight, mask.float())


def test_unmasking_a_subclass_gives_the_subclass_back() -> None:
    layer = ScaledLinear(4, 4, 2.0)
    mask_layer(layer, torch.eye(4, dtype=torch.bool))
    unmask_layer(layer)
    assert type(layer) is ScaledLinear
    assert masked_weights(layer) == []


def test_a_layer_constructed_directly_starts_dense() -> None:
    layer = MaskedConv2d(2, 4, 3, groups=2, bias=False)
    assert bool(layer.mask.all())
    assert layer.mask.shape == (4, 1, 3, 3)
    assert repr(MaskedLinear(2, 3)) == "MaskedLinear(in_features=2, out_features=3, bias=True, density=1)"


def test_repr_shows_the_density_and_works_without_data() -> None:
    layer, _, _, _ = build("linear")
    density = float(layer.mask.sum()) / 24
    assert f"density={density:.4g}" in repr(layer)
    assert "in_features=2" in repr(MaskedLinear(2, 3, device="meta"))
