"""One model of a zoo: how to build it and what to call it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[..., tuple[Any, ...]]
"""(batch, \\*size) to positional arguments."""


@dataclass(frozen=True)
class Case:
    """A model and its inputs.

    Attributes:
        zoo: where it comes from.
        name: its name there.
        build: makes it, with random weights.
        inputs: makes its positional arguments from a batch size and the numbers of a size.
        size: of the example: (height, width), or (frames, height, width), or (length,).
        others: sizes to try too; the model may refuse them.
    """

    zoo: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    size: tuple[int, ...]
    others: tuple[tuple[int, ...], ...] = ()

    @property
    def key(self) -> str:
        """Zoo and name."""
        return f"{self.zoo}/{self.name}"


def images(batch: int, height: int, width: int) -> tuple[Any, ...]:
    """A batch of images."""
    return (torch.randn(batch, 3, height, width),)


def other_images(size: int) -> tuple[tuple[int, int], ...]:
    """Sizes to try besides a square one: not square, a bit larger, twice as large."""
    return (size, size + 32), (size + 32, size + 32), (2 * size, 2 * size)


class Keywords(nn.Module):
    """A model called with positional arguments under these names."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *arguments: Tensor) -> Any:
        """Call the model."""
        return self.model(**dict(zip(self.names, arguments, strict=True)))
