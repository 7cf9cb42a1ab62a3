"""AlexNet-s and AlexNet-b for 32x32 images (Lee, Ajanthan & Torr 2019, after Krizhevsky et al. 2012)."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from sparsefx.experiments.networks.network import DenseLayers, Network, scaled

# (output channels, kernel size, padding); every stride is 2. The padding of the first is that of the
# PyTorch code of Dettmers & Zettlemoyer (2019), so maps are 13, 7, 4, 2 and 1 wide; SNIP's are 16 to 1.
_CONVOLUTIONS = ((96, 11, 2), (256, 5, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1))


def alexnet(hidden: int, classes: int = 10, width: float = 1.0) -> nn.Module:
    """Five convolutions of stride 2 and three linear layers, batch norm after all but the last, no pooling.

    Args:
        hidden: units of the two hidden linear layers: 1024 in AlexNet-s, 2048 in AlexNet-b.
        classes: number of classes.
        width: factor of all channels and hidden units.
    """
    features = nn.Sequential()
    channels = 3
    for published, kernel, padding in _CONVOLUTIONS:
        inputs, channels = channels, scaled(published, width)
        features.append(nn.Conv2d(inputs, channels, kernel, stride=2, padding=padding))
        features.append(nn.BatchNorm2d(channels)).append(nn.ReLU(inplace=True))
    hidden = scaled(hidden, width)
    classifier = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        nn.Linear(hidden, classes),
    )
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


_DENSE: DenseLayers = {"snip": (), "first-version": ("features.12",)}

ALEXNETS = (
    Network("alexnet-s", partial(alexnet, 1024), (3, 32, 32), 10, _DENSE),
    Network("alexnet-b", partial(alexnet, 2048), (3, 32, 32), 10, _DENSE),
)
