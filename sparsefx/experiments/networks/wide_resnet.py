"""Wide residual networks for 32x32 images (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from sparsefx.experiments.networks.network import DenseLayers, Network, scaled


class Block(nn.Module):
    """Two 3x3 convolutions, batch norm and ReLU before each, and a shortcut around them.

    Where the shortcut is a convolution (the number of channels or the stride changes) it takes the
    activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        around = x if self.shortcut is None else self.shortcut(activated)
        inside = self.relu2(self.bn2(self.conv1(activated)))
        out: Tensor = around + self.conv2(self.dropout(inside))
        return out


class WideResNet(nn.Module):
    """A 3x3 convolution, three groups of blocks at strides 1, 2 and 2, a global average, a linear layer.

    Convolutions start from a normal distribution with variance ``2 / (k * k * out)``, biases from 0.

    Args:
        depth: number of layers, 6 a block and 4 besides: 16, 22, 28, ...
        widen: the groups have ``16 * widen``, ``32 * widen`` and ``64 * widen`` channels.
        dropout: probability between the two convolutions of a block: 0.3 in the code of Dettmers &
            Zettlemoyer (2019), 0 in that of Mostafa & Wang (2019).
        classes: number of classes.
        width: further factor of the groups' channels. The first convolution keeps its 16, as in the thin
            networks of Mostafa & Wang.
    """

    def __init__(
        self, depth: int, widen: int, dropout: float = 0.3, classes: int = 10, width: float = 1.0
    ) -> None:
        super().__init__()
        channels, blocks = 16, (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.groups = nn.Sequential()
        for published, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            inputs, channels = channels, scaled(published, width)
            rest = [Block(channels, channels, 1, dropout) for _ in range(blocks - 1)]
            self.groups.append(nn.Sequential(Block(inputs, channels, stride, dropout), *rest))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) to logits (N, classes)."""
        maps = self.relu(self.bn(self.groups(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(maps).flatten(1))
        return logits


def _initialise(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)


def _network(name: str, depth: int, widen: int, dropout: float, dense: DenseLayers) -> Network:
    return Network(name, partial(WideResNet, depth, widen, dropout), (3, 32, 32), 10, dense)


_ALL_SPARSE: DenseLayers = {"snip": (), "first-version": ()}
_ENDS_DENSE: DenseLayers = {"dynamic-sparse": ("conv1", "*.shortcut", "fc")}

WIDE_RESNETS = (
    _network("wrn-16-8", 16, 8, 0.3, _ALL_SPARSE),
    _network("wrn-16-10", 16, 10, 0.3, _ALL_SPARSE),
    _network("wrn-22-8", 22, 8, 0.3, _ALL_SPARSE),
    _network("wrn-28-2", 28, 2, 0.3, _ENDS_DENSE),
    _network("wrn-28-2-no-dropout", 28, 2, 0.0, _ENDS_DENSE),
)
