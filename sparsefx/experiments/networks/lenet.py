"""LeNet 300-100 and LeNet-5 Caffe, for MNIST (LeCun et al. 1998, in the sizes of the Caffe examples)."""

from __future__ import annotations

from torch import nn

from sparsefx.experiments.networks.network import DenseLayers, Network, scaled


def lenet_300_100(classes: int = 10, width: float = 1.0) -> nn.Module:
    """784-300-100-10 with ReLU: 266,200 weights, 410 biases."""
    first, second = scaled(300, width), scaled(100, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, classes),
    )


def lenet_300_100_norm(classes: int = 10, width: float = 1.0) -> nn.Module:
    """LeNet 300-100 with a batch norm after every linear layer, the last too, and no biases.

    That is the multilayer perceptron of Mostafa & Wang (2019); 266,200 weights.
    """
    first, second = scaled(300, width), scaled(100, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, first, bias=False),
        nn.BatchNorm1d(first),
        nn.ReLU(),
        nn.Linear(first, second, bias=False),
        nn.BatchNorm1d(second),
        nn.ReLU(),
        nn.Linear(second, classes, bias=False),
        nn.BatchNorm1d(classes),
    )


def lenet5_caffe(classes: int = 10, width: float = 1.0) -> nn.Module:
    """Two 5x5 convolutions and two linear layers: 430,500 weights, 580 biases.

    With a ReLU for each convolution, as in the code of Dettmers & Zettlemoyer (2019); Caffe's own and
    SNIP's have none. It comes after the pooling, where it does the same to a quarter of the elements.
    """
    first, second, hidden = scaled(20, width), scaled(50, width), scaled(500, width)
    return nn.Sequential(
        nn.Conv2d(1, first, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(first, second, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * 4 * 4, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


_ALL_SPARSE: DenseLayers = {"snip": (), "dynamic-sparse": ()}

LENETS = (
    Network("lenet-300-100", lenet_300_100, (1, 28, 28), 10, _ALL_SPARSE),
    Network("lenet-300-100-norm", lenet_300_100_norm, (1, 28, 28), 10, {"dynamic-sparse": ()}),
    Network("lenet5-caffe", lenet5_caffe, (1, 28, 28), 10, {"snip": ()}),
)
