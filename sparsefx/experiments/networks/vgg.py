"""VGG16-C, -D and -like for 32x32 images (Lee, Ajanthan & Torr 2019, after Simonyan & Zisserman 2015)."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from sparsefx.experiments.networks.network import DenseLayers, Network, scaled

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(
    hidden_layers: int = 2,
    pointwise_padding: int | None = None,
    classes: int = 10,
    width: float = 1.0,
) -> nn.Module:
    """Thirteen convolutions, each with batch norm and ReLU, in five blocks that end in a max pool.

    A hidden linear layer is followed by ReLU and then batch norm, as in the code of
    Dettmers & Zettlemoyer (2019).

    Args:
        hidden_layers: hidden linear layers of 512 units: 2 in VGG16-C and -D, 1 in VGG16-like.
        pointwise_padding: None makes every kernel 3x3 (VGG16-D and -like). 0 or 1 makes the third
            convolution of blocks 3 to 5 pointwise (VGG16-C) with that padding: 0 as in SNIP; 1 as in the
            code of Dettmers & Zettlemoyer, where these maps grow by 2 and the last one is 2x2.
        classes: number of classes.
        width: factor of all channels and hidden units.
    """
    features = _features(pointwise_padding, width)
    last_map = 2 if pointwise_padding else 1
    inputs, hidden = scaled(512, width) * last_map**2, scaled(512, width)
    classifier = nn.Sequential(nn.Flatten())
    for _ in range(hidden_layers):
        classifier.append(nn.Linear(inputs, hidden)).append(nn.ReLU(inplace=True))
        classifier.append(nn.BatchNorm1d(hidden))
        inputs = hidden
    classifier.append(nn.Linear(inputs, classes))
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


def _features(pointwise_padding: int | None, width: float) -> nn.Sequential:
    features, channels = nn.Sequential(), 3
    for block in _BLOCKS:
        for index, published in enumerate(block):
            pointwise = index == 2 and pointwise_padding is not None
            kernel, padding = (1, pointwise_padding or 0) if pointwise else (3, 1)
            inputs, channels = channels, scaled(published, width)
            features.append(nn.Conv2d(inputs, channels, kernel, padding=padding))
            features.append(nn.BatchNorm2d(channels)).append(nn.ReLU(inplace=True))
        features.append(nn.MaxPool2d(2))
    return features


_DENSE: DenseLayers = {
    "snip": (),
    "first-version": ("features.10", "features.14", "features.17", "features.40"),
}

VGGS = (
    Network("vgg16-c", partial(vgg16, 2, 1), (3, 32, 32), 10, _DENSE),
    Network("vgg16-c-snip", partial(vgg16, 2, 0), (3, 32, 32), 10, {"snip": ()}),
    Network("vgg16-d", partial(vgg16, 2), (3, 32, 32), 10, _DENSE),
    Network("vgg16-like", partial(vgg16, 1), (3, 32, 32), 10, _DENSE),
)
