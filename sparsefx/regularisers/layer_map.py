"""The linear map of a layer with another weight, and the groups of weights behind its inputs or maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvTransposeNd

from sparsefx.errors import ArgumentError
from sparsefx.masking.layers import MASKABLE
from sparsefx.masking.masks import MaskedWeight

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_FORWARDS = [kind.forward for kind in MASKABLE]


def layers_of(masked: MaskedWeight) -> list[nn.Module]:
    """The Linear and Conv layers that hold a masked weight.

    Raises:
        ArgumentError: it is used in another way, so that noise or gates have no layer to act on.
    """
    layers = [module for module, _, _ in masked.holders]
    for layer in layers:
        if type(layer).forward not in _FORWARDS:
            raise ArgumentError(
                f"model uses {masked.name} in {type(layer).__name__}, which is not a plain Linear or Conv "
                f"layer; keep it out with sparsefx.sparsify(dense={masked.name!r})"
            )
    return layers


def apply_weight(layer: nn.Module, args: Sequence[Any], weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a Linear or Conv layer would return for ``args`` with this weight and bias.

    Args:
        layer: an instance of one of :data:`~sparsefx.masking.layers.MASKABLE`, with its class's forward.
        args: the positional arguments of the layer's call, the input first.
        weight: of the shape of ``layer.weight``.
        bias: of the shape of ``layer.bias``, or None.
    """
    if isinstance(layer, nn.Linear):
        return F.linear(args[0], weight, bias)
    if isinstance(layer, _ConvTransposeNd):
        return _transposed(layer, args, weight, bias)
    return cast("Tensor", cast("nn.Conv2d", layer)._conv_forward(args[0], weight, bias))


def count_groups(layer: nn.Module) -> int:
    """How many inputs a Linear layer or output maps a convolution has."""
    groups = layer.in_features if isinstance(layer, nn.Linear) else layer.out_channels
    return cast("int", groups)


def spread_to_weight(layer: nn.Module, values: Tensor) -> Tensor:
    """One value an input (Linear) or an output map (convolutions), expanded to the weight's shape."""
    weight = cast("Tensor", layer.weight)
    if isinstance(layer, nn.Linear):
        return values.expand_as(weight)
    ones = [1] * (weight.dim() - 2)
    if not isinstance(layer, _ConvTransposeNd):
        return values.view(-1, 1, *ones).expand_as(weight)
    per_group = values.view(layer.groups, 1, -1, *ones)  # (in, out / groups, ...), groups along "in"
    inputs = layer.in_channels // layer.groups
    return per_group.expand(-1, inputs, -1, *weight.shape[2:]).reshape(weight.shape)


def _transposed(layer: _ConvTransposeNd, args: Sequence[Any], weight: Tensor, bias: Tensor | None) -> Tensor:
    spatial = weight.dim() - 2
    size = args[1] if len(args) > 1 else None
    stride, kernel, dilation = list(layer.stride), list(layer.kernel_size), list(layer.dilation)
    padding = cast("list[int]", layer.padding)
    extra = layer._output_padding(args[0], size, stride, padding, kernel, spatial, dilation)
    convolve = cast("Any", _TRANSPOSED[spatial])
    return cast(
        "Tensor", convolve(args[0], weight, bias, stride, padding, extra, layer.groups, layer.dilation)
    )
