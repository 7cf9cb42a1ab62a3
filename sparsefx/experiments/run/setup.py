"""What is trained: a network, its data, and how."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparsefx.experiments.data import Data
from sparsefx.experiments.run.settings import Settings


@dataclass(frozen=True)
class Setup:
    """The network, the data and the settings of one run.

    Attributes:
        model: the network, masked if the method masks it.
        data: the data set.
        settings: what was asked for.
    """

    model: nn.Module
    data: Data
    settings: Settings

    @property
    def name(self) -> str:
        """The network's name."""
        return self.settings.network.name
