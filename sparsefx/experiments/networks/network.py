"""A network of a paper: how to build it, what it takes, and which of its layers a paper keeps dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from sparsefx.errors import ArgumentError, unknown_name

SETTINGS: dict[str, str] = {
    "snip": "all weights masked (Lee, Ajanthan & Torr 2019; Dettmers & Zettlemoyer 2019, section 4.1)",
    "first-version": (
        "the layers that the reference code of Dettmers & Zettlemoyer left dense in July 2019: it took the "
        "batch norms out of its masks by name, and with 'features.1' also 'features.10' and its like"
    ),
    "dynamic-sparse": (
        "first layer and shortcuts dense (Mostafa & Wang 2019, section 4), in wide ResNets the last layer too"
    ),
}
"""The settings that ``Network.dense`` names, and where each comes from."""

DenseLayers = Mapping[str, tuple[str, ...]]
"""For each setting, the names and globs of the layers that stay dense, as ``sparsify(dense=)`` takes them."""


@dataclass(frozen=True)
class Network:
    """One network of a paper.

    Attributes:
        name: its name in ``NETWORKS``.
        build: ``build(classes=..., width=1.0)`` makes it, initialised from torch's global generator.
            ``width`` scales the number of channels and hidden units, rounded, at least 1 each.
        input_shape: (channels, height, width) of one sample.
        classes: the number of classes that ``build`` takes when told none.
        dense: the layers that stay dense in each of :data:`SETTINGS` in which the network was used.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
    dense: DenseLayers

    def dense_layers(self, setting: str = "snip") -> tuple[str, ...]:
        """The layers that stay dense in a setting.

        Raises:
            ArgumentError: the network was not used in that setting.
        """
        if setting not in self.dense:
            raise unknown_name(f"setting of {self.name}", setting, self.dense)
        return self.dense[setting]


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded half up, at least 1.

    Raises:
        ArgumentError: ``width`` is not a positive number.
    """
    if not (math.isfinite(width) and width > 0):
        raise ArgumentError(f"width={width!r} is not a positive number; 1.0 is the published width")
    return max(1, math.floor(channels * width + 0.5))
