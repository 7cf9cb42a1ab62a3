"""What a cycle did, as plain numbers: for reading, plotting and saving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerRecord:
    """What one cycle did to one layer.

    Attributes:
        name: the layer's name.
        pruned: weights removed.
        grown: weights activated, of which some may just have been removed.
        share: fraction of all regrowth the layer was due before its room was considered.
        density: fraction of positions active after the cycle.
        active: positions active after the cycle.
        numel: positions.
    """

    name: str
    pruned: int
    grown: int
    share: float
    density: float
    active: int
    numel: int


@dataclass(frozen=True)
class CycleRecord:
    """What one cycle did to a model.

    Attributes:
        cycle: the cycle's number, from 1.
        step: optimizer steps done before it.
        prune_rate: fraction of active weights it set out to remove.
        layers: one record a layer, in the model's order.
    """

    cycle: int
    step: int
    prune_rate: float
    layers: tuple[LayerRecord, ...]

    def to_plain(self) -> dict[str, Any]:
        """The record as dicts, lists, strings and numbers, which ``torch.load`` reads without pickle."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> CycleRecord:
        """Undo :meth:`to_plain`."""
        return cls(**{**plain, "layers": tuple(LayerRecord(**layer) for layer in plain["layers"])})
