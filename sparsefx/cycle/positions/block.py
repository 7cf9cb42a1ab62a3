"""The block of a layer's tensors that this process holds, where a layer is sharded over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """A rectangular part of a layer; the processes of ``groups`` together hold every position once.

    Attributes:
        shape: the full layer's.
        size: the block's shape.
        offset: index of the block's first position in each dimension.
        groups: process groups over which the layer is sharded, one a dimension of the device mesh.
        device: where tensors must be for these groups to add them up.
    """

    shape: torch.Size
    size: torch.Size
    offset: tuple[int, ...]
    groups: tuple[Any, ...]
    device: torch.device

    @classmethod
    def full(cls, tensor: Tensor) -> Block:
        """All of a layer that is not sharded."""
        return cls(tensor.shape, tensor.shape, (0,) * tensor.dim(), (), tensor.device)

    def sum(self, part: Tensor) -> Tensor:
        """The sum of what all blocks contribute; every process of the groups must ask.

        Args:
            part: this block's summand, of any shape, the same in all.

        Returns:
            A tensor like it.
        """
        full = part.to(self.device, copy=True)
        for group in self.groups:
            dist.all_reduce(full, group=group)
        return full.to(part.device)

    def part_of(self, full: Tensor) -> Tensor:
        """This block of a tensor of the layer's shape."""
        return full[tuple(slice(o, o + n) for o, n in zip(self.offset, self.size, strict=True))]

    def positions(self, device: torch.device) -> Tensor:
        """The flat index in the layer of each of the block's elements, int64 of shape ``(numel,)``."""
        flat = torch.zeros((), dtype=torch.int64, device=device)
        for length, offset, size in zip(self.shape, self.offset, self.size, strict=True):
            flat = flat.unsqueeze(-1) * length + torch.arange(offset, offset + size, device=device)
        return flat.flatten()

    def find(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Where positions of the layer are in the block.

        Args:
            positions: flat indices in the layer, int64 of shape ``(n,)``.

        Returns:
            Which of them the block holds, bool of shape ``(n,)``, and the flat indices in it of these.
        """
        inside = torch.ones_like(positions, dtype=torch.bool)
        if self.size == self.shape:
            return inside, positions
        local = torch.zeros_like(positions)
        stride = self.shape.numel()
        for length, offset, size in zip(self.shape, self.offset, self.size, strict=True):
            stride //= length
            index = positions // stride % length - offset
            inside &= (index >= 0) & (index < size)
            local = local * size + index
        return inside, local[inside]
