"""Small masked models and layer states for the tests."""

from __future__ import annotations

import io
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparsefx.cycle import LayerState
from sparsefx.masking.layers import MASKABLE, mask_layer
from sparsefx.masking.masks import masked_weights


def reloaded(model: nn.Module) -> nn.Module:
    """A model as ``torch.save`` and ``torch.load`` give it back."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def random_mask(shape: torch.Size | tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
    """A mask with exactly round(density * numel) True positions."""
    size = torch.Size(shape).numel()
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator)[: round(density * size)]] = True
    return mask.view(shape)


def mask_layers(model: nn.Module, density: float = 0.3, seed: int = 0) -> nn.Module:
    """Mask every Linear and Conv of a model in place, and return it."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, MASKABLE):
            mask_layer(layer, random_mask(layer.weight.shape, density, generator))
    return model


def masked_mlp(*widths: int, density: float = 0.3, seed: int = 0) -> nn.Sequential:
    """A masked multilayer perceptron with ReLU between its layers."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for features, out in pairwise(widths):
        layers += [nn.Linear(features, out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    mask_layers(model, density, seed)
    return model


def masked_conv_net(density: float = 0.3, seed: int = 0) -> nn.Sequential:
    """Two convolutions and a linear layer, for inputs (batch, 3, 8, 8)."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )
    mask_layers(model, density, seed)
    return model


def total_active(model: nn.Module) -> int:
    """Active weights of a model."""
    return sum(int(masked.mask.sum()) for masked in masked_weights(model))


def layer_state(
    shape: tuple[int, ...], active: int, seed: int, name: str = "layer", scale: float = 1.0
) -> LayerState:
    """A layer with random weight, momentum and gradient and exactly ``active`` active positions."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator)[:active]] = True
    mask = mask.view(shape)
    weight, momentum, gradient = (torch.randn(shape, generator=generator) for _ in range(3))
    return LayerState(name, weight * mask, mask, momentum * scale, gradient * scale)


def sized_layer(numel: int, active: int, statistic: float, name: str) -> LayerState:
    """A flat layer whose mean active momentum is ``statistic``; the first ``active`` are active."""
    mask = torch.arange(numel) < active
    weight = torch.arange(1.0, numel + 1) * mask
    return LayerState(name, weight, mask, torch.full((numel,), statistic, dtype=torch.float64))


def assert_same(one: object, other: object) -> None:
    """Equal all the way down, tensors bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
