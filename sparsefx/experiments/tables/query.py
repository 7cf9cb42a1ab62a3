"""A query: which runs of the ledger a cell is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsefx.experiments.ledger.record import Run

COPIES: dict[str, tuple[str, str]] = {
    "cifar10-jpeg": ("cifar10", "JPEG copy of CIFAR-10"),
    "cifar10-folder": ("cifar10", "CIFAR-10 from a folder of images"),
    "cifar10-folder-val": ("cifar10", "CIFAR-10 from a folder of images with a validation split"),
}
"""Data sets that stand in for another: name -> (the other's name, label)."""


@dataclass(frozen=True)
class Query:
    """Which runs a cell is about.

    Attributes:
        network: name of the network.
        data: name of the data set; its copies are found too, as groups of their own.
        method: name of the method.
        density: fraction of the maskable weights asked for.
        options: what is set otherwise than in the method; other runs are not found.
        any_density: find runs at every density, for methods whose density is an outcome.
        any_options: find runs with other options too, as groups of their own.
    """

    network: str
    data: str
    method: str
    density: float
    options: Mapping[str, Any] = field(default_factory=dict)
    any_density: bool = False
    any_options: bool = False

    def __call__(self, run: Run) -> bool:
        """Whether the cell is about this run."""
        return (
            (run.network, original(run.data), run.method) == (self.network, self.data, self.method)
            and (self.any_density or run.density == self.density)
            and (self.any_options or run.options == dict(self.options))
        )


def original(data: str) -> str:
    """The data set that a copy stands in for; another data set's own name."""
    return COPIES[data][0] if data in COPIES else data
