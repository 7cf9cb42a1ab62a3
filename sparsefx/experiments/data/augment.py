"""Reflect-pad, random crop and flip, for a whole batch at once on whatever device it lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = 4


@dataclass(frozen=True)
class CropsAndFlips:
    """Where each of N samples is cropped and whether it is flipped.

    Attributes:
        top: first row of the crop in the padded image, int64 (N,), in [0, 2 * PADDING].
        left: first column of the crop, int64 (N,), in [0, 2 * PADDING].
        flipped: bool (N,).
    """

    top: Tensor
    left: Tensor
    flipped: Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> CropsAndFlips:
        """Independent and uniform for each of ``count`` samples."""
        offsets = torch.randint(2 * PADDING + 1, (2, count), generator=generator)
        return cls(offsets[0], offsets[1], torch.randint(2, (count,), generator=generator).bool())

    def to(self, device: torch.device) -> CropsAndFlips:
        """The same on another device."""
        return CropsAndFlips(self.top.to(device), self.left.to(device), self.flipped.to(device))

    def __getitem__(self, positions: slice) -> CropsAndFlips:
        return CropsAndFlips(self.top[positions], self.left[positions], self.flipped[positions])


def crop_and_flip(images: Tensor, where: CropsAndFlips) -> Tensor:
    """Pad by reflection, cut out the original size, flip left to right.

    One gather: each pixel of the result is read where it lies in the image, which is never padded.

    Args:
        images: shape (N, C, H, W) with H and W above ``PADDING``.
        where: one entry a sample, on the images' device.

    Returns:
        A new tensor of the same shape and type.
    """
    count, channels, height, width = images.shape
    rows = where.top[:, None] + torch.arange(height, device=images.device) - PADDING
    across = torch.arange(width, device=images.device)
    across = torch.where(where.flipped[:, None], width - 1 - across, across)
    columns = where.left[:, None] + across - PADDING
    pixels = _reflected(rows, height)[:, :, None] * width + _reflected(columns, width)[:, None, :]
    pixels = pixels.view(count, 1, height * width).expand(-1, channels, -1)
    return images.flatten(2).gather(2, pixels).view_as(images)


def _reflected(position: Tensor, size: int) -> Tensor:
    """Positions beyond an edge mirrored at it; the pixel of the edge is not repeated."""
    last = size - 1
    return last - (last - position.abs()).abs()
