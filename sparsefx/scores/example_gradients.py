"""Squared gradients of single examples, without running them one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import MaskedWeight
from sparsefx.scores.layer_calls import output_rows, watched


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a masked layer.

    Attributes:
        layer: the layer.
        rows: what it read, (groups, examples * positions, fan in).
        output: what it returned.
    """

    layer: MaskedWeight
    rows: Tensor
    output: Tensor


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """While open, the calls of the masked layers are recorded.

    Raises:
        ArgumentError: a masked weight is of another kind of layer than Linear and Conv.
    """
    calls: list[Call] = []

    def record(layer: MaskedWeight, rows: Tensor, output: Tensor) -> Tensor:
        calls.append(Call(layer, rows.detach(), output))
        return output.clone()  # what follows may change its input in place

    with watched(model, record):
        yield calls


def squared_gradients(total: Tensor, calls: Sequence[Call], examples: int) -> dict[str, Tensor]:
    """The sum over examples of the squared gradient of each one's part in ``total``.

    An example's gradient by a weight is the sum, over calls and positions, of the gradient by the
    layer's output times what the layer read: both are at hand for all examples at once.

    Args:
        total: a scalar that is a sum over examples, none of which depends on another's inputs.
        calls: all calls of masked layers on the way to it.
        examples: how many; the first dimension of every layer's input is made of them.

    Returns:
        For the name of each weight that was used a tensor of its shape.

    Raises:
        ArgumentError: a layer's input cannot be divided among the examples.
    """
    outputs = [call.output for call in calls]
    slopes = torch.autograd.grad(total, outputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for call, slope in zip(calls, slopes, strict=True):
        rows = (output_rows(call.layer, slope), call.rows)
        pairs[call.layer.name].append((_by_example(rows[0], examples), _by_example(rows[1], examples)))
    shapes = {call.layer.name: call.layer.mask.shape for call in calls}
    return {name: _summed_squares(uses).view(shapes[name]) for name, uses in pairs.items()}


def _by_example(rows: Tensor, examples: int) -> Tensor:
    """(groups, examples * positions, n) as (groups, examples, positions, n)."""
    if rows.shape[1] % examples:
        raise ArgumentError(
            f"a layer reads {rows.shape[1]} rows for {examples} examples; exact curvature needs layers whose "
            "inputs have the batch first: choose curvature='hutchinson'"
        )
    parts: Tensor = rows.unflatten(1, (examples, -1))
    return parts


def _summed_squares(uses: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over examples of ``(sum over uses and positions of slope x row)^2``: (groups, neurons, fan in)."""
    slope, row = uses[0]
    if len(uses) == 1 and slope.shape[2] == 1:  # then the square of a product is a product of squares
        return slope[:, :, 0].square().transpose(1, 2) @ row[:, :, 0].square()
    gradients = torch.stack([slope.transpose(2, 3) @ row for slope, row in uses]).sum(dim=0)
    return gradients.square().sum(dim=1)
