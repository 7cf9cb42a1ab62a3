"""An average gradient of our own, for weights whose optimizer keeps no momentum."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsefx.masking.sharding import copy_like, local, shard_like
from sparsefx.optim.gradients.momentum import keeps_momentum, read_momentum, unreadable_momentum
from sparsefx.optim.weights.weight_handles import WeightHandle

_SMOOTHING = 0.1  # new = 0.9 * old + 0.1 * gradient


class GradientAverages:
    """The momentum of every weight: its optimizer's, or else an exponential average of its gradient.

    Attributes:
        tensors: the averages by layer name, in float32 at least, 4 bytes a weight.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, handles: Iterable[WeightHandle], optimizer: Optimizer) -> None:
        """After a step: take in the gradients of weights that the optimizer keeps no momentum of.

        Warns:
            UserWarning: it keeps one in a form that cannot be read, seen for the first time.
        """
        unreadable: dict[str, str] = {}
        for handle in handles:
            weight = handle.weight
            if weight.grad is None or handle.is_packed or keeps_momentum(optimizer, weight):
                continue  # what is packed has no gradient to grow by
            name = handle.masked.name
            # One inf would stay in an average for good. Not finite(): it would wait for the device.
            gradient = local(weight.grad).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            if name not in self.tensors:
                self.tensors[name] = shard_like(torch.zeros_like(gradient), weight)
                unreadable[name] = unreadable_momentum(optimizer, weight)
            average = local(self.tensors[name])
            average.lerp_(gradient.to(average.dtype), _SMOOTHING)
        _say_unreadable({name: key for name, key in unreadable.items() if key}, optimizer)

    def momentum(self, handle: WeightHandle, optimizer: Optimizer) -> Tensor | None:
        """This process's part of a weight's momentum, of its local shape; None if there is none yet."""
        momentum = read_momentum(optimizer, handle.weight)
        average: Tensor | None = local(self.tensors.get(handle.masked.name))
        return average if momentum is None else momentum

    def load(self, tensors: Mapping[str, Tensor], handles: Iterable[WeightHandle]) -> None:
        """Take over saved averages, of their weights' shapes, on their devices."""
        weights = {handle.masked.name: handle.weight for handle in handles}
        self.tensors = {name: copy_like(average, weights[name]) for name, average in tensors.items()}


def _say_unreadable(keys: Mapping[str, str], optimizer: Optimizer) -> None:
    if keys:
        name, key = next(iter(keys.items()))
        warnings.warn(
            f"the {key!r} that {type(optimizer).__name__} keeps of {name} and {len(keys) - 1} more weights "
            "is no tensor of the weight's shape, so sparsefx averages their gradients: 4 bytes a weight",
            stacklevel=2,
        )
