"""An average gradient of our own, for weights whose optimizer keeps no momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsefx.masking.sharding import copy_like, divide_like, local
from sparsefx.optim.momentum import keeps_momentum, read_momentum
from sparsefx.optim.weight_handles import Slot

_SMOOTHING = 0.1  # new = 0.9 * old + 0.1 * gradient


class GradientAverages:
    """The momentum of every weight: its optimizer's, or else an exponential average of its gradient.

    Attributes:
        tensors: the averages by layer name, in float32 at least, 4 bytes a weight.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, slots: Iterable[Slot], optimizer: Optimizer) -> None:
        """After a step: take in the gradients of weights that the optimizer keeps no momentum of."""
        for slot in slots:
            weight = slot.weight
            if weight.grad is None or keeps_momentum(optimizer, weight):
                continue
            name = slot.masked.name
            # One inf would stay in an average for good. Not finite(): it would wait for the device.
            gradient = local(weight.grad).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            if name not in self.tensors:
                self.tensors[name] = divide_like(torch.zeros_like(gradient), weight)
            average = local(self.tensors[name])
            average.lerp_(gradient.to(average.dtype), _SMOOTHING)

    def momentum(self, slot: Slot, optimizer: Optimizer) -> Tensor | None:
        """This process's part of a weight's momentum, of its local shape; None if there is none yet."""
        momentum = read_momentum(optimizer, slot.weight)
        average: Tensor | None = local(self.tensors.get(slot.masked.name))
        return average if momentum is None else momentum

    def load(self, tensors: Mapping[str, Tensor], slots: Iterable[Slot]) -> None:
        """Take over saved averages, of their weights' shapes, on their devices."""
        weights = {slot.masked.name: slot.weight for slot in slots}
        self.tensors = {name: copy_like(average, weights[name]) for name, average in tensors.items()}
