"""What a region of training computes, as data: convolutions, and what stands between them.

Values are numbered: first the inputs, then each instruction's result. A convolution's result is kept for
the backward pass. What stands between convolutions is a :class:`Combination`, which is kept where several
instructions read it, and otherwise computed again where it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

from sparsefx.kernels.ir.activation import NO_ACTIVATION, Activation
from sparsefx.kernels.ir.program import DHW


@dataclass(frozen=True)
class SparseConvolution:
    """A convolution by a sparse weight; a linear layer is one whose window is the whole image.

    Attributes:
        source: the value that it reads.
        layer: the number of its layer.
        in_channels: channels of the source.
        out_channels: channels of the result.
        kernel: depth, height and width of the window.
        stride: as of the convolution; these and the following by depth, height and width.
        padding: zeros on both sides.
        dilation: as of the convolution.
        groups: as of the convolution.
        biased: whether it has a bias.
        whole: whether the window must be the whole image, as of a linear layer.
    """

    source: int
    layer: int
    in_channels: int
    out_channels: int
    kernel: DHW
    stride: DHW
    padding: DHW
    dilation: DHW
    groups: int
    biased: bool
    whole: bool = False

    @property
    def operands(self) -> tuple[int, ...]:
        """What it reads."""
        return (self.source,)

    @property
    def flattened(self) -> SparseConvolution:
        """The same for images seen as rows of elements, if the window is the whole image."""
        if not self.whole:
            return self
        return replace(self, in_channels=self.in_channels * math.prod(self.kernel), kernel=(1, 1, 1))

    def size(self, size: DHW) -> DHW:
        """Of the result, from that of the source."""
        depth, height, width = (
            (length + 2 * pad - spread * (window - 1) - 1) // step + 1
            for length, pad, spread, window, step in zip(
                size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return depth, height, width


@dataclass(frozen=True)
class Normalisation:
    """BatchNorm of one summand.

    Attributes:
        layer: the number of its layer among the normalisations.
        affine: whether it has weight and bias.
        tracked: whether it has running statistics.
        eps: as of BatchNorm.
    """

    layer: int
    affine: bool
    tracked: bool
    eps: float


WHOLE: DHW = (0, 0, 0)
"""The size of a window that is the whole image."""


@dataclass(frozen=True)
class Windows:
    """A pooling: the largest of each window, or its mean with zeros outside of the image counted.

    Attributes:
        largest: which of the two.
        kernel: depth, height and width of the window, or :data:`WHOLE`.
        stride: as of the pooling; these and the following by depth, height and width.
        padding: on both sides.
        ceil: whether a last window may end outside of the image.
    """

    largest: bool
    kernel: DHW
    stride: DHW
    padding: DHW
    ceil: bool = False

    def window(self, size: DHW) -> DHW:
        """The window's size in an image of this size."""
        return size if self.kernel == WHOLE else self.kernel

    def size(self, size: DHW) -> DHW:
        """Of the result, from that of the source."""
        axes = zip(size, self.padding, self.window(size), self.stride, strict=True)
        depth, height, width = (self._count(*axis) for axis in axes)
        return depth, height, width

    def _count(self, length: int, pad: int, window: int, step: int) -> int:
        over = length + 2 * pad - window
        count = (-(-over // step) if self.ceil else over // step) + 1
        return count - 1 if self.ceil and (count - 1) * step >= length + pad else count


@dataclass(frozen=True)
class Summand:
    """A value, normalised or as it is."""

    source: int
    normalisation: Normalisation | None = None


@dataclass(frozen=True)
class Combination:
    """One or two summands, activation, pooling or dropout: in this order, each of which may be missing.

    Attributes:
        summands: two only without pooling.
        activation: of their sum; of two summands one whose slope its result tells.
        windows: the pooling.
        noise: the input that the result of one summand is multiplied by, as of dropout; without pooling.
    """

    summands: tuple[Summand, ...]
    activation: Activation = NO_ACTIVATION
    windows: Windows | None = None
    noise: int | None = None

    @property
    def operands(self) -> tuple[int, ...]:
        """What it reads."""
        return tuple(summand.source for summand in self.summands)


@dataclass(frozen=True)
class Concatenation:
    """The channels of several values, one after the other."""

    operands: tuple[int, ...]


Instruction: TypeAlias = SparseConvolution | Combination | Concatenation


@dataclass(frozen=True)
class TrainingProgram:
    """A region.

    Attributes:
        dims: dimensions of an image, 1 to 3; 0 where the inputs are rows ``[..., channels]``.
        inputs: number of input values, with the noises.
        instructions: in the order of computation.
        outputs: the values that the region returns.
        flat: those of the inputs and outputs that are ``[N, C]``: images of one element.
        noises: how many of the inputs, the last ones, are noises of dropouts.
    """

    dims: int
    inputs: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    flat: tuple[int, ...] = ()
    noises: int = 0

    def of(self, value: int) -> Instruction | None:
        """The instruction that makes a value; None for an input."""
        return None if value < self.inputs else self.instructions[value - self.inputs]

    def users(self, value: int) -> list[int]:
        """The values that are computed from this one."""
        return [
            number for number, item in enumerate(self.instructions, self.inputs) if value in item.operands
        ]

    def is_kept(self, value: int) -> bool:
        """Whether a value stays in memory until the backward pass, instead of being computed again."""
        item = self.of(value)
        if not isinstance(item, Combination):
            return True
        users = self.users(value)
        alone = len(users) == 1 and isinstance(self.of(users[0]), SparseConvolution)
        return not (alone and len(item.summands) == 1 and value not in self.outputs)
