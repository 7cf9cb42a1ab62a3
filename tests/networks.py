"""The networks that export is tested on: the paper's and torchvision's, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torchvision.models.densenet import DenseNet
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.shufflenetv2 import ShuffleNetV2


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * 8 * 8, 48),
        nn.ReLU(),
        nn.Linear(48, 32),
        nn.BatchNorm1d(32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def lenet5() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * 5 * 5, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def alexnet() -> nn.Module:
    """AlexNet's plan at a quarter of its width."""
    model = nn.Sequential()
    for inputs, outputs, kernel in [(3, 24, 5), (24, 64, 5), (64, 96, 3), (96, 96, 3), (96, 64, 3)]:
        model.append(nn.Conv2d(inputs, outputs, kernel, stride=2 if kernel == 5 else 1, padding=kernel // 2))
        model.append(nn.BatchNorm2d(outputs)).append(nn.ReLU(inplace=True))
    model.append(nn.AdaptiveAvgPool2d(3)).append(nn.Flatten()).append(nn.Dropout())
    return model.append(nn.Linear(64 * 9, 128)).append(nn.ReLU(inplace=True)).append(nn.Linear(128, 10))


def vgg(batch_norm: bool) -> nn.Sequential:
    """VGG-16's plan at a quarter of its width, with an adaptive pool so that any image size fits."""
    model = nn.Sequential()
    channels = 3
    for width in (16, 16, 0, 32, 32, 0, 64, 64, 64, 0, 128, 128, 128, 0, 128, 128, 128):
        if width == 0:
            model.append(nn.MaxPool2d(2))
            continue
        model.append(nn.Conv2d(channels, width, 3, padding=1))
        if batch_norm:
            model.append(nn.BatchNorm2d(width))
        model.append(nn.ReLU(inplace=True))
        channels = width
    model.append(nn.AdaptiveAvgPool2d(2)).append(nn.Flatten()).append(nn.Linear(128 * 4, 64))
    return model.append(nn.ReLU(inplace=True)).append(nn.Dropout()).append(nn.Linear(64, 10))


class _PreActivation(nn.Module):
    """A block of a Wide ResNet: the shortcut takes the activated input where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        h = F.dropout(F.relu(self.bn2(self.conv1(active))), 0.3, self.training)
        return self.conv2(h) + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-16-2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        plan = [(16, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        self.blocks = nn.Sequential(*(_PreActivation(*block) for block in plan))
        self.bn, self.fc = nn.BatchNorm2d(128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


def residual(block: type[BasicBlock | Bottleneck]) -> Callable[[], nn.Module]:
    """The first two stages of a ResNet, one block each, at a fourth of its width if they are bottlenecks."""

    def make() -> nn.Module:
        model = ResNet(block, [1] * 4, width_per_group=64 if block is BasicBlock else 16)
        model.layer3, model.layer4 = nn.Sequential(), nn.Sequential()
        model.fc = nn.Linear(128 * block.expansion, 10)
        return model

    return make


def dense_net() -> nn.Module:
    return DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16, num_classes=10)


def mobile_net() -> nn.Module:
    """MobileNet v2's kinds of block: without expansion, with a stride, with a shortcut."""
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    return MobileNetV2(num_classes=10, width_mult=0.5, inverted_residual_setting=blocks)


def shuffle_net() -> nn.Module:
    """ShuffleNet v2's two kinds of block: with a stride, and one that splits its channels."""
    return ShuffleNetV2([2, 1, 1], [8, 16, 24, 32, 48], num_classes=10)


def inception() -> nn.Module:
    """GoogLeNet's kind of block, twice."""
    stem = [BasicConv2d(3, 16, kernel_size=3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True)]
    blocks = [Inception(16, 8, 8, 16, 4, 8, 8), Inception(40, 8, 8, 16, 4, 8, 8)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10))


def torchvision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10, **options)


Network = tuple[Callable[[], nn.Module], tuple[int, ...]]

_SMALL: dict[str, Network] = {
    "mlp": (mlp, (8,)),
    "lenet5": (lenet5, (32,)),
    "alexnet": (alexnet, (32, 45)),
    "vgg16": (lambda: vgg(batch_norm=False), (32, 48)),
    "vgg16_bn": (lambda: vgg(batch_norm=True), (32, 48)),
    "residual": (residual(BasicBlock), (32, 48)),
    "bottlenecks": (residual(Bottleneck), (32, 48)),
    "wide_resnet": (WideResNet, (16, 24)),
    "dense_net": (dense_net, (32, 48)),
    "squeezenet": (torchvision_model("squeezenet1_1"), (32, 48)),
    "mobile_net": (mobile_net, (32, 48)),
    "inception": (inception, (16, 24)),
    "shuffle_net": (shuffle_net, (32, 48)),
}
_WHOLE: dict[str, Network] = {
    "resnet18": (torchvision_model("resnet18"), (32, 48)),
    "resnet50": (torchvision_model("resnet50"), (32, 48)),
    "densenet121": (torchvision_model("densenet121"), (32, 48)),
    "mobilenet_v2": (torchvision_model("mobilenet_v2"), (32, 48)),
    "googlenet": (torchvision_model("googlenet", init_weights=False), (32, 48)),
}
NETWORKS = _SMALL | _WHOLE
"""Name to (constructor, image sizes that it accepts)."""


def names(quick: Collection[str] = tuple(_SMALL)) -> list[Any]:
    """All of them, for ``parametrize``; the quick run takes some, by default a small one of each kind."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in NETWORKS]


KINDS = ("mlp", "lenet5", "residual", "dense_net", "mobile_net")
"""Enough where blocks matter little: without convolution, without norm, sums, concatenations, depthwise."""

PATTERNS = ("rows", "columns", "both", "random", "everything")


def build(name: str, pattern: str, seed: int = 0) -> nn.Module:
    """A network in float64 and evaluation mode, BatchNorm randomised, weights emptied by a pattern."""
    torch.manual_seed(seed)
    model = NETWORKS[name][0]().double().eval()
    randomize_norms(model)
    empty(model, pattern)
    return model


@torch.no_grad()
def randomize_norms(model: nn.Module) -> None:
    """Statistics and affine parameters away from 0 and 1."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)


@torch.no_grad()
def empty(model: nn.Module, pattern: str) -> None:
    """Empty 40% of the rows and/or columns of every weight, or 95% at random, or everything."""
    for module in model.modules():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        weight = module.weight
        if pattern in ("rows", "both", "random"):
            weight[torch.rand(weight.shape[0]) < 0.4] = 0
        if pattern in ("columns", "both"):
            weight[:, torch.rand(weight.shape[1]) < 0.4] = 0
        if pattern == "random":
            weight[torch.rand_like(weight) > 0.05] = 0
        if pattern == "everything":
            weight.zero_()


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    assert actual.shape == expected.shape
    scale = max(expected.abs().max().item(), 1e-30)
    return (actual - expected).abs().max().item() / scale
