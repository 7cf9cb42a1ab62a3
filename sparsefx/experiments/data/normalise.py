"""The mean and standard deviation that each paper normalises its images by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefx.errors import ArgumentError


@dataclass(frozen=True)
class Normalisation:
    """Each channel's mean and standard deviation, of values in [0, 1].

    Raises:
        ArgumentError: there are not as many of one as of the other, or a deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ArgumentError(f"mean={self.mean!r} and std={self.std!r} need one number a channel each")
        if min(self.std) <= 0:
            raise ArgumentError(f"std={self.std!r} must be positive")

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """``images -> (images / 255 - mean) / std``, uint8 (N, C, H, W) to float32, for one device."""
        shift = 255 * torch.tensor(self.mean, device=device).view(-1, 1, 1)
        scale = 255 * torch.tensor(self.std, device=device).view(-1, 1, 1)
        return lambda images: images.float().sub_(shift).div_(scale)


MNIST = Normalisation((0.1307,), (0.3081,))
CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR10_DYNAMIC_SPARSE = Normalisation(  # Mostafa & Wang 2019, from the code of wide ResNets
    (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
)
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
