"""The masks that layers begin with: random, with a weight for each output, and what cannot learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsefx.masking.masks import MaskedWeight

_MOST = 0.5


def number_of_outputs(layer: nn.Module, shape: torch.Size) -> int:
    """How many outputs of its layer a weight computes.

    Args:
        layer: holds the weight.
        shape: ``(out, in / groups, ...)`` or, of a transposed convolution, ``(in, out / groups, ...)``; a
            vector is one output.
    """
    if len(shape) < 2:
        return min(1, shape.numel())
    outputs = shape[1] * layer.groups if isinstance(layer, _ConvTransposeNd) else shape[0]
    return min(outputs, shape.numel())


def random_mask(
    shape: torch.Size, active: int, generator: torch.Generator | None, layer: nn.Module | None = None
) -> Tensor:
    """A bool mask of ``shape`` with exactly ``active`` True positions, uniformly at random.

    Drawn on the generator's device (the CPU without one), so a seed gives the same mask wherever
    the model lives.

    Args:
        shape: the weight's shape.
        active: how many positions are True.
        generator: source of the draw; torch's default one if None.
        layer: holds the weight. Each of its outputs that would be left without a True position gets one,
            while there are enough, in place of those that were drawn last.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    order = torch.randperm(shape.numel(), generator=generator, device=device)
    if layer is not None and 0 < active < shape.numel():
        order = _each_output_first(order, active, shape, layer)
    mask = torch.zeros(shape.numel(), dtype=torch.bool, device=device)
    mask[order[:active]] = True
    return mask.view(shape)


def _each_output_first(order: Tensor, active: int, shape: torch.Size, layer: nn.Module) -> Tensor:
    """A random order in which the first position of each output comes before all second ones."""
    number = number_of_outputs(layer, shape)
    chosen = _outputs_of(order[:active], shape, layer)
    if int(torch.bincount(chosen, minlength=number).count_nonzero()) == number:
        return order
    place = torch.arange(len(order), device=order.device)
    first = torch.full((number,), len(order), device=order.device)
    first = first.scatter_reduce(0, _outputs_of(order, shape, layer), place, "amin").sort().values
    later = torch.ones_like(order, dtype=torch.bool)
    later[first] = False
    return torch.cat([order[first], order[later]])


def _outputs_of(positions: Tensor, shape: torch.Size, layer: nn.Module) -> Tensor:
    """Which output each flat position of a weight belongs to."""
    if len(shape) < 2:
        return positions * 0
    if not isinstance(layer, _ConvTransposeNd):
        return positions // shape[1:].numel()
    group = positions // (shape[1:].numel() * (shape[0] // layer.groups))
    return group * shape[1] + positions // shape[2:].numel() % shape[1]


def warn_of_empty(layers: Sequence[MaskedWeight], who: str, stacklevel: int = 2) -> None:
    """Say which layers begin without a weight, or with none for most channels of a depthwise layer.

    Args:
        layers: the masked layers, not sharded.
        who: what made the masks, for the message.
        stacklevel: as of ``warnings.warn``.
    """
    found = [(layer.name, _empty(layer)) for layer in layers]
    empty = [f"{name} (no weight)" for name, part in found if part == 1]
    empty += [f"{name} ({part:.0%} of its channels)" for name, part in found if _MOST < part < 1]
    if empty:
        some = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        warnings.warn(
            f'{who}: layers begin empty and can hardly learn: {some}; distribution="erk" gives small '
            "layers more of the weights, dense= keeps layers dense, and a higher density leaves more",
            stacklevel=stacklevel + 1,
        )


def _empty(layer: MaskedWeight) -> float:
    """Fraction of the outputs without an active weight; less than all count in depthwise layers alone."""
    module, mask = layer.holders[0][0], layer.mask
    if mask.is_meta or not mask.numel():
        return 0.0
    if not bool(mask.any()):
        return 1.0
    if not (isinstance(module, _ConvNd) and module.groups == module.in_channels > 1):
        return 0.0
    return float((~mask.view(module.groups, -1, *mask.shape[1:]).flatten(1).any(1)).float().mean())
