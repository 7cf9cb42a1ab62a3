"""Watching the masked layers of a model while it runs: what they read, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import MaskedWeight, masked_weights

Readable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
OnCall = Callable[[MaskedWeight, Tensor, Tensor], Tensor | None]
"""``(layer, rows, output)``: called after the layer; what it returns, if anything, replaces the output."""


@contextmanager
def watched(model: nn.Module, on_call: OnCall) -> Iterator[None]:
    """While open, every call of a masked layer is followed by ``on_call``.

    Raises:
        ArgumentError: a masked weight is of another kind of layer than Linear and Conv (a transposed
            convolution, a bare parameter).
    """
    with ExitStack() as stack:
        for layer in masked_weights(model):
            for module, _, _ in layer.holders:
                if not isinstance(module, Readable):
                    raise ArgumentError(
                        f"layer {layer.name!r} is a {type(module).__name__}; this score knows Linear and "
                        "Conv layers: keep this one dense, or choose another score or curvature='hutchinson'"
                    )

                def hook(
                    reader: Readable, inputs: tuple[Tensor, ...], output: Tensor, layer: MaskedWeight = layer
                ) -> Tensor | None:
                    return on_call(layer, input_rows(reader, inputs[0]), output)

                stack.callback(module.register_forward_hook(hook).remove)
        yield


def input_rows(layer: Readable, inputs: Tensor) -> Tensor:
    """A layer's input as the rows that its weight's rows are multiplied with.

    Args:
        layer: with weight (out, fan in) or (out, channels, kernel...), whose fan in is their product.
        inputs: what it is called with, (..., fan in) or (batch, channels, positions...).

    Returns:
        Shape (groups, batch * positions, fan in); times :func:`weight_rows` transposed, that is the
        layer's output without its bias.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, layer.in_features)
    dims = len(layer.kernel_size)
    patches = inputs if inputs.dim() == dims + 2 else inputs.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = F.pad(patches, layer._reversed_padding_repeated_twice, mode)
    for dim in range(dims):
        kernel, stride, dilation = layer.kernel_size[dim], layer.stride[dim], layer.dilation[dim]
        patches = patches.unfold(2 + dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    patches = patches.unflatten(1, (layer.groups, -1))  # (batch, groups, channels, positions..., kernel...)
    rows: Tensor = patches.permute(1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    return rows.flatten(dims + 2).flatten(1, dims + 1)


def output_rows(layer: MaskedWeight, output: Tensor) -> Tensor:
    """A layer's output, or a gradient by it, as (groups, batch * positions, neurons).

    Args:
        layer: the layer.
        output: (..., out) for Linear, (batch, out, positions...) for convolutions.
    """
    neurons = 1 - layer.mask.dim()  # the output's dimension that the weight's first one became
    rows: Tensor = output.movedim(neurons, -1).reshape(-1, output.shape[neurons])
    rows = rows.unflatten(1, (_groups(layer), -1))
    return rows.transpose(0, 1)


def weight_rows(layer: MaskedWeight, values: Tensor) -> Tensor:
    """A tensor of the weight's shape as (groups, neurons, fan in): a view if it can be."""
    rows: Tensor = values.flatten(1).unflatten(0, (_groups(layer), -1))
    return rows


def _groups(layer: MaskedWeight) -> int:
    groups: int = getattr(layer.holders[0][0], "groups", 1)
    return groups
