"""Figures of a training's history: where the weights are, where they go, how many move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sparsefx.analyses.history import by_layer
from sparsefx.analyses.layer_densities import layer_densities
from sparsefx.cycle import CycleRecord
from sparsefx.plot.over_cycles import ALL_LAYERS, over_cycles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def densities(history: Sequence[CycleRecord]) -> Figure:
    """Draw the density of each layer and of all layers together after each cycle, in percent.

    Up to ten layers are drawn as lines, more as the rows of a heat map. The scale is logarithmic.

    Args:
        history: ``optimizer.history``, or a part of it.

    Raises:
        ArgumentError: ``history`` is empty, or its records are not all of the same layers.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> import sparsefx
        >>> from sparsefx.cycle import CycleRecord, LayerRecord
        >>> layer = LayerRecord("fc", pruned=5, grown=3, share=1.0, density=0.25, active=4, numel=16)
        >>> figure = sparsefx.plot.densities([CycleRecord(1, 540, 0.5, (layer,))])
        >>> figure.axes[0].lines[0].get_ydata(orig=False).tolist()
        [25.0]
    """
    found = layer_densities(history)
    values = torch.cat([found.densities, found.total[:, None]], 1)
    names = (*found.names, ALL_LAYERS)
    return over_cycles(
        "Density of each layer", names, _cycles(history), {"density, %": 100 * values}, logarithmic=True
    )


def growth_shares(history: Sequence[CycleRecord]) -> Figure:
    """Draw each layer's share of the regrowth in each cycle, in percent.

    With ``redistribute="momentum"`` this is the layer's share of the mean momentum of the remaining weights.
    The share is computed before layers without enough free positions pass weights on. It is 0 in a cycle that
    regrows nothing.

    Args:
        history: ``optimizer.history``, or a part of it.

    Raises:
        ArgumentError: ``history`` is empty, or its records are not all of the same layers.
        MissingPackageError: matplotlib is not installed.
    """
    shares = by_layer(history, lambda layer: layer.share)
    return over_cycles("Share of the regrowth", _names(history), _cycles(history), {"share, %": 100 * shares})


def turnover(history: Sequence[CycleRecord]) -> Figure:
    """Draw how many weights each cycle pruned and grew in each layer, in percent of its positions.

    A layer that grows more than it loses gains weights from the others. The scale is logarithmic.

    Args:
        history: ``optimizer.history``, or a part of it.

    Raises:
        ArgumentError: ``history`` is empty, or its records are not all of the same layers.
        MissingPackageError: matplotlib is not installed.
    """
    panels = {
        "pruned, % of positions": 100 * by_layer(history, lambda layer: layer.pruned / layer.numel),
        "grown, % of positions": 100 * by_layer(history, lambda layer: layer.grown / layer.numel),
    }
    return over_cycles("Weights that move", _names(history), _cycles(history), panels, logarithmic=True)


def _names(history: Sequence[CycleRecord]) -> list[str]:
    return [layer.name for layer in history[0].layers]


def _cycles(history: Sequence[CycleRecord]) -> list[int]:
    return [record.cycle for record in history]
