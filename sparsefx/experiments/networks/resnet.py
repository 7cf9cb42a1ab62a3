"""ResNet-50 (He et al. 2016) for ImageNet, v1.5: the 3x3 convolution of a bottleneck has the stride.

Its own module rather than torchvision's, because a thin one scales every width. Names and function are
torchvision's, so that a checkpoint of one loads into the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

from torch import Tensor, nn

from sparsefx.experiments.networks.network import DenseLayers, Network, scaled

_STAGES = ((3, 1), (4, 2), (6, 2), (3, 2))  # bottlenecks, stride of the first
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch norm, around them a shortcut; 4 times ``planes`` come out."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * planes
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if inputs != outputs or stride != 1:
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, inputs, H, W) to (N, 4 * planes, H / stride, W / stride)."""
        around = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        activated: Tensor = self.relu(self.bn3(self.conv3(out)) + around)
        return activated


class ResNet50(nn.Module):
    """A 7x7 convolution, a max pool, four stages of bottlenecks, a global average, a linear layer.

    Args:
        fan: Kaiming's normal initialisation of the convolutions by ``"fan_out"`` (He et al. 2015; the
            code of Mostafa & Wang 2019) or by ``"fan_in"`` (the tuned recipe of Dettmers & Zettlemoyer
            2019).
        classes: number of classes.
        width: factor of the 64 channels of the first convolution, rounded; all others are multiples.
    """

    def __init__(
        self, fan: Literal["fan_in", "fan_out"] = "fan_out", classes: int = 1000, width: float = 1.0
    ) -> None:
        super().__init__()
        base = scaled(64, width)
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(base)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * base * _EXPANSION, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, classes)."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: Tensor = self.fc(self.avgpool(maps).flatten(1))
        return logits


def _stages(base: int) -> Iterator[nn.Sequential]:
    inputs = base
    for index, (blocks, stride) in enumerate(_STAGES):
        planes = base * 2**index
        outputs = _EXPANSION * planes
        rest = [Bottleneck(outputs, planes, 1) for _ in range(blocks - 1)]
        yield nn.Sequential(Bottleneck(inputs, planes, stride), *rest)
        inputs = outputs


_DENSE: DenseLayers = {"snip": (), "dynamic-sparse": ("conv1", "*.downsample.0")}

RESNETS = (
    Network("resnet-50", partial(ResNet50, "fan_out"), (3, 224, 224), 1000, _DENSE),
    Network("resnet-50-fan-in", partial(ResNet50, "fan_in"), (3, 224, 224), 1000, _DENSE),
)
