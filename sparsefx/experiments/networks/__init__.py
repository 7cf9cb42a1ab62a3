"""The networks of the papers, by name.

- A file for each family: ``lenet``, ``alexnet``, ``vgg``, ``wide_resnet``, ``resnet``.
- ``network``: what a network is (``Network``), and the settings in which papers keep layers dense.
- ``thin_dense``: the width at which a dense network is as large as a sparse one.

Files here import torch and of sparsefx only errors and the selection of layers: no data, no training.

To add a network, write a function ``build(classes=..., width=1.0)`` in the file of its family, add its row to
the tuple at the end of that file (a new family: to ``NETWORKS`` here, too), and its number of weights to
``tests/experiments/networks/test_networks.py``. It then has its name in ``sparsefx train --network``.
"""

import re

from sparsefx.errors import unknown_name
from sparsefx.experiments.networks.alexnet import ALEXNETS
from sparsefx.experiments.networks.lenet import LENETS
from sparsefx.experiments.networks.network import SETTINGS, Network
from sparsefx.experiments.networks.resnet import RESNETS
from sparsefx.experiments.networks.vgg import VGGS
from sparsefx.experiments.networks.wide_resnet import WIDE_RESNETS

__all__ = ["NETWORKS", "SETTINGS", "Network", "network", "network_name"]

NETWORKS: dict[str, Network] = {
    member.name: member for family in (LENETS, ALEXNETS, VGGS, WIDE_RESNETS, RESNETS) for member in family
}


def network(name: str) -> Network:
    """The network of that name, in any spelling that :func:`network_name` reads.

    Raises:
        ArgumentError: no network is called so.

    Example:
        >>> model = network("lenet-300-100").build()
        >>> sum(parameter.numel() for parameter in model.parameters())
        266610
    """
    name = network_name(name)
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    return NETWORKS[name]


def network_name(spelling: str) -> str:
    """The name in ``NETWORKS`` that is spelled so: hyphens, underscores, spaces and case make no difference.

    Returns:
        The name; the spelling itself where no network is called so.

    Example:
        >>> network_name("lenet300-100"), network_name("LeNet5"), network_name("mine")
        ('lenet-300-100', 'lenet5-caffe', 'mine')
    """
    return _BY_SPELLING.get(_letters(spelling), spelling)


def _letters(spelling: str) -> str:
    return re.sub(r"[-_\s]", "", spelling).lower()


_BY_SPELLING = {**{_letters(name): name for name in NETWORKS}, "lenet5": "lenet5-caffe"}
