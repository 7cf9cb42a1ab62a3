"""An average gradient of our own, for weights whose optimizer keeps no momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsefx.momentum import keeps_momentum, read_momentum
from sparsefx.slots import Slot

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
            # One inf would stay in an average for good. Not finite(): it would wait for the device.
            gradient = weight.grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            average = self.tensors.setdefault(slot.masked.name, torch.zeros_like(gradient))
            average.lerp_(gradient.to(average.dtype), _SMOOTHING)

    def momentum(self, slot: Slot, optimizer: Optimizer) -> Tensor | None:
        """The momentum of a weight; None if there is none yet."""
        momentum = read_momentum(optimizer, slot.weight)
        return self.tensors.get(slot.masked.name) if momentum is None else momentum

    def load(self, tensors: Mapping[str, Tensor], slots: Iterable[Slot]) -> None:
        """Take over saved averages, on their weights' devices."""
        devices = {slot.masked.name: slot.weight.device for slot in slots}
        self.tensors = {name: average.to(devices[name], copy=True) for name, average in tensors.items()}
