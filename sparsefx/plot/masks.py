"""Masks as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.masking.masks import check_unsharded, masked_weights
from sparsefx.plot.figures import new_figure
from sparsefx.plot.names import plain
from sparsefx.report.costs import maskable_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIXELS = 160  # along each side of a picture at most, about as many as a screen shows of it


def masks(model: nn.Module, layers: Sequence[str] | None = None) -> Figure:
    """Draw which weights of each layer are active. Each row is an output, each column an input of the kernel.

    A mask of shape (out, in, ...) is drawn as (out, in * positions of the kernel). One with more than 160
    rows or columns is averaged over blocks: a point is the density of its block, and the heading says which
    density is black.

    Args:
        model: any model; for a layer without a mask, the weights that are not 0 are drawn.
        layers: names of the layers to draw; all Linear and Conv layers and masked weights by default.

    Raises:
        ArgumentError: a layer is not known, there is none to draw, or weights are sharded over processes.
        MissingPackageError: matplotlib is not installed.
    """
    found = _active(model)
    names = list(found) if layers is None else _chosen(layers, found)
    if not names:
        raise ArgumentError("there is no layer to draw; masks are those of Linear and Conv layers")
    columns = math.ceil(math.sqrt(len(names)))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(max(4.0, 2.6 * columns), 2.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        _draw(panel, name, found[name])
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    return figure


def averaged(matrix: Tensor, most: int) -> Tensor:
    """A matrix with at most so many rows, each the mean of equally many neighbouring ones; float32.

    Args:
        matrix: (rows, columns), bool or floating point.
        most: how many rows at most. The last one may be the mean of fewer.
    """
    size = -(-len(matrix) // most)
    return torch.stack([block.float().mean(0) for block in matrix.split(size)])


def _active(model: nn.Module) -> dict[str, Tensor]:
    """Where the weights of each layer are active: bool matrices (out, in * positions of the kernel)."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_unsharded(model, "plot.masks")
    masked = {m.name: (m.holders[0][0], m.mask) for m in masked_weights(model)}
    layers = maskable_layers(model)
    plain = {name: (layer, cast(Tensor, layer.weight).detach() != 0) for name, layer in layers.items()}
    return {name: _as_matrix(*found) for name, found in {**plain, **masked}.items() if found[1].numel()}


def _as_matrix(layer: nn.Module, active: Tensor) -> Tensor:
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...)
        by_group = active.unflatten(0, (layer.groups, -1)).transpose(1, 2)
        active = by_group.flatten(0, 1)
    return active.flatten(1).cpu() if active.dim() > 1 else active[None].cpu()


def _chosen(layers: Sequence[str], found: dict[str, Tensor]) -> list[str]:
    if isinstance(layers, str):
        raise ArgumentError(f"layers={layers!r} is one name; pass a list of names, [{layers!r}]")
    for name in layers:
        if name not in found:
            raise unknown_name("layer", name, found)
    return list(layers)


def _draw(panel: Axes, name: str, active: Tensor) -> None:
    image = averaged(averaged(active, _PIXELS).T, _PIXELS).T
    rows, columns = active.shape
    darkest = float(image.max()) or 1.0
    panel.imshow(
        image.numpy(),
        cmap="Greys",
        interpolation="nearest",
        vmin=0,
        vmax=darkest,
        aspect="auto",
        extent=(0, columns, rows, 0),
    )
    black = "" if image.shape == active.shape else f" (black: {darkest:.0%})"
    density = int(active.sum()) / active.numel()
    about = f"{rows} x {columns}, {density:.2%} active{black}"
    panel.set_title(f"{plain(name, 34)}\n{about}", fontsize=7)
    panel.set_xticks([0, columns])
    panel.set_yticks([0, rows])
    panel.tick_params(labelsize=6)
