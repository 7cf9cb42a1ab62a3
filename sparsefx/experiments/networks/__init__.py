"""The networks of the papers, by name."""

from sparsefx.errors import unknown_name
from sparsefx.experiments.networks.alexnet import ALEXNETS
from sparsefx.experiments.networks.lenet import LENETS
from sparsefx.experiments.networks.network import SETTINGS, Network
from sparsefx.experiments.networks.resnet import RESNETS
from sparsefx.experiments.networks.vgg import VGGS
from sparsefx.experiments.networks.wide_resnet import WIDE_RESNETS

__all__ = ["NETWORKS", "SETTINGS", "Network", "network"]

NETWORKS: dict[str, Network] = {
    found.name: found for found in (*LENETS, *ALEXNETS, *VGGS, *WIDE_RESNETS, *RESNETS)
}


def network(name: str) -> Network:
    """The network of that name.

    Raises:
        ArgumentError: no network is called so.

    Example:
        >>> model = network("lenet-300-100").build()
        >>> sum(parameter.numel() for parameter in model.parameters())
        266610
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    return NETWORKS[name]
