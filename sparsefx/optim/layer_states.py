"""The layers as an update of the masks sees them: weights, momenta, gradients and what a method keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsefx.cycle import LayerState
from sparsefx.masking.sharding import local
from sparsefx.optim.auxiliary_tensors import AuxiliaryTensors
from sparsefx.optim.gradients.averages import GradientAverages
from sparsefx.optim.gradients.momentum import finite
from sparsefx.optim.weights.weight_handles import WeightHandle


def layer_states(
    handles: Sequence[WeightHandle],
    auxiliary: AuxiliaryTensors,
    averages: GradientAverages | None,
    optimizer: Optimizer,
) -> list[LayerState]:
    """One state a layer, of the weight's local shape where the layer is sharded.

    Args:
        handles: the layers.
        auxiliary: what the method keeps beside them.
        averages: the momenta of weights whose optimizer keeps none; None if no momentum is read.
        optimizer: the wrapped optimizer.
    """
    weights = [handle.values for handle in handles]
    momenta: list[Tensor | None] = [None] * len(handles)
    if averages is not None:
        momenta = [averages.momentum(handle, optimizer) for handle in handles]
    gradients = [_gradient(handle.weight) for handle in handles]
    rows = zip(
        handles, weights, _zeros_if_some(momenta, weights), _zeros_if_some(gradients, weights), strict=True
    )
    return [
        LayerState(
            handle.masked.name,
            weight,
            handle.mask,
            momentum,
            gradient,
            **auxiliary.of(handle),
            block=handle.block,
        )
        for handle, weight, momentum, gradient in rows
    ]


def _zeros_if_some(values: list[Tensor | None], like: list[Tensor]) -> list[Tensor | None]:
    """Zeros for layers without a value when others have one: they never got a gradient."""
    if all(value is None for value in values):
        return values
    return [
        torch.zeros_like(weight) if value is None else value
        for value, weight in zip(values, like, strict=True)
    ]


def _gradient(weight: Tensor) -> Tensor | None:
    return None if weight.grad is None else finite(local(weight.grad))
