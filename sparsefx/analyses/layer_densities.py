"""Every layer's density over the cycles of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsefx._common.table import Table, Tabular
from sparsefx.analyses.history import by_layer
from sparsefx.cycle import CycleRecord


@dataclass(frozen=True, eq=False)
class LayerDensities(Tabular):
    """Densities over time; ``print`` shows them as a table.

    Attributes:
        names: the layers.
        numel: each layer's number of positions.
        steps: optimizer steps done before each cycle.
        densities: float64, shape (cycles, layers): after each cycle, in [0, 1].
    """

    names: tuple[str, ...]
    numel: tuple[int, ...]
    steps: tuple[int, ...]
    densities: Tensor

    @property
    def total(self) -> Tensor:
        """Density of all layers together after each cycle, float64, shape (cycles,)."""
        sizes = torch.tensor(self.numel, dtype=torch.float64)
        return self.densities @ sizes / sizes.sum()

    def as_dict(self) -> dict[str, Any]:
        """The densities as plain data, ready for JSON."""
        return {
            "names": list(self.names),
            "numel": list(self.numel),
            "steps": list(self.steps),
            "densities": self.densities.tolist(),
        }

    def _table(self) -> Table:
        rows = [
            [str(step), *(f"{density:.4f}" for density in row)]
            for step, row in zip(self.steps, self.densities.tolist(), strict=True)
        ]
        return Table(["step", *self.names], rows)


def layer_densities(history: Sequence[CycleRecord]) -> LayerDensities:
    """Every layer's density after every cycle, from ``SparseMomentum.history``.

    Args:
        history: records of one model's cycles, in order.

    Raises:
        ArgumentError: there is no record, or the records are not all of the same layers, or are none.

    Example:
        >>> from sparsefx.cycle import CycleRecord, LayerRecord
        >>> layer = LayerRecord("fc", pruned=5, grown=3, share=1.0, density=0.25, active=4, numel=16)
        >>> print(layer_densities([CycleRecord(1, 540, 0.5, (layer,))]))
        step      fc
        ----  ------
        540   0.2500
    """
    densities = by_layer(history, lambda layer: layer.density)
    return LayerDensities(
        tuple(layer.name for layer in history[0].layers),
        tuple(layer.numel for layer in history[0].layers),
        tuple(record.step for record in history),
        densities,
    )
