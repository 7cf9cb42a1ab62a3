"""What the masked layers read: their inputs as rows, and the rows' second moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.masks import MaskedWeight, masked_weights
from sparsefx.scores.task import Task

Readable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def input_rows(layer: Readable, inputs: Tensor) -> Tensor:
    """A layer's input as the rows that its weight's rows are multiplied with.

    Args:
        layer: with weight (out, fan in) or (out, fan in / kernel, kernel...).
        inputs: what it is called with, with or without a batch dimension.

    Returns:
        Shape (groups, rows, fan in): a row an example and position; ``rows @ weight.flatten(1).T`` is
        the layer's output without its bias.
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
    positions = range(3, 3 + dims)
    patches = patches.unflatten(1, (layer.groups, -1))  # (batch, groups, channels, positions..., kernel...)
    rows: Tensor = patches.permute(1, 0, *positions, 2, *range(3 + dims, 3 + 2 * dims))
    return rows.flatten(dims + 2).flatten(1, dims + 1)


def weight_rows(layer: MaskedWeight, values: Tensor) -> Tensor:
    """A tensor of the weight's shape as (groups, neurons, fan in): a view if it can be."""
    groups = getattr(layer.holders[0][0], "groups", 1)
    rows: Tensor = values.flatten(1).unflatten(0, (groups, -1))
    return rows


def second_moments(task: Task, model: nn.Module, damping: float) -> dict[str, Tensor]:
    """The mean of ``x x^T`` over each masked layer's inputs x, the Hessian of its output's squared error.

    Args:
        task: the batches; not the loss.
        model: the model to run; all its masked weights must be those of Linear or Conv layers.
        damping: this fraction of the mean diagonal is added to the diagonal.

    Returns:
        For each masked weight's name, float64, shape (groups, fan in, fan in). Convolutions average
        over positions too, tied weights over all their uses.

    Raises:
        ArgumentError: there are no batches, a masked weight is of another kind of layer (a transposed
            convolution, a bare parameter), or a layer is not called.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(layer: MaskedWeight, rows: Tensor) -> None:
        rows = rows.double()
        sums[layer.name] = sums.get(layer.name, 0) + rows.transpose(1, 2) @ rows
        counts[layer.name] = counts.get(layer.name, 0) + rows.shape[1]

    with _watched(masked_weights(model), add), torch.no_grad():
        for inputs, _ in task.data():
            model(inputs)
    for layer in masked_weights(model):
        if layer.name not in sums:
            raise ArgumentError(
                f"layer {layer.name!r} is not called by the model; keep it dense or remove it"
            )
    return {name: _damped(total / counts[name], damping) for name, total in sums.items()}


@contextmanager
def _watched(layers: list[MaskedWeight], add: Callable[[MaskedWeight, Tensor], None]) -> Iterator[None]:
    """While open, ``add(layer, rows)`` is called for each call of each layer."""
    with ExitStack() as stack:
        for layer in layers:
            for module, _, _ in layer.holders:
                if not isinstance(module, Readable):
                    raise ArgumentError(
                        f"layer {layer.name!r} is a {type(module).__name__}; layer-wise OBS knows Linear and "
                        "Conv layers: keep this one dense"
                    )

                def hook(reader: Readable, inputs: tuple[Tensor, ...], layer: MaskedWeight = layer) -> None:
                    add(layer, input_rows(reader, inputs[0]))

                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _damped(moment: Tensor, damping: float) -> Tensor:
    diagonal = moment.diagonal(dim1=1, dim2=2)
    # A layer that only ever reads zeros has no scale; any positive one will do.
    scale = float(diagonal.mean()) or 1.0
    diagonal += damping * scale
    return moment
