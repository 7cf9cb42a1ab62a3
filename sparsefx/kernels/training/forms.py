"""What a step of training depends on besides its program: forms of tensors, and the states of layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.errors import ArgumentError
from sparsefx.kernels.ir.program import DHW
from sparsefx.kernels.training.patterns import Pattern


@dataclass(frozen=True)
class TensorForm:
    """A tensor from outside.

    Attributes:
        shape: ``[N, C, *size]`` or ``[N, C]``.
        strides: in elements.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> DHW:
        """Depth, height and width."""
        depth, height, width = (*[1] * (5 - len(self.shape)), *self.shape[2:])
        return depth, height, width

    @property
    def steps(self) -> DHW:
        """Elements from one plane, row and column to the next."""
        planes, rows, columns = (*[0] * (5 - len(self.strides)), *self.strides[2:])
        return planes, rows, columns


@dataclass(frozen=True, eq=False)
class LayerState:
    """A convolution's layer as it is at a step.

    Attributes:
        pattern: of its nonzeros.
        every: the pattern of all weights, where the gradient of each is wanted; else None.
        positions: of the nonzeros in the flat weight, int32, where the parameter holds all; None where it
            is packed.
        trained: whether its weight gets a gradient.
        bias_trained: whether its bias does.
    """

    pattern: Pattern
    every: Pattern | None
    positions: NDArray[np.int32] | None
    trained: bool
    bias_trained: bool


@dataclass(frozen=True)
class NormState:
    """A normalisation as it is at a step.

    Attributes:
        training: by the batch's statistics.
        updated: whether running statistics are updated.
    """

    training: bool
    updated: bool


def contiguous_form(shape: tuple[int, ...]) -> TensorForm:
    """The form of a contiguous tensor of this shape."""
    strides = [math.prod(shape[index + 1 :]) for index in range(len(shape))]
    return TensorForm(tuple(shape), tuple(strides))


def as_int32(places: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """The same numbers in 32 bits.

    Raises:
        ArgumentError: they do not fit.
    """
    if places.size and max(-int(places.min()), int(places.max())) >= 2**31:
        raise ArgumentError(
            "an image or a layer is too large for sparse kernels, which tell places by 32 bits; keep the "
            "layer out with kernels='auto', or train the model that was not accelerated"
        )
    return places.astype(np.int32, copy=False)
