"""A region's computation as data.

It is read from its text once, where the operator is called, and then handed on as it is: a program does not
change, and can be the key of a cache. Values are numbered: first the inputs, then each instruction's result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

DHW: TypeAlias = tuple[int, int, int]
"""Something by depth, height and width."""


def dhw(values: Sequence[int], missing: int = 0) -> DHW:
    """By depth, height and width, from one to three of them; ``missing`` for the others."""
    depth, height, width = (*([missing] * (3 - len(values))), *values)
    return depth, height, width


NO_BOUNDS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Convolution:
    """A sparse convolution, plus a residual, between bounds; a linear layer is one with a single tap.

    Attributes:
        source: the value that it reads.
        weights: where its rows, codes and values begin in the region's three tensors; the bias follows the
            values.
        in_channels: channels of the source.
        out_channels: channels of the result.
        kernel: depth, height and width of the window.
        stride: as of the convolution; these and the following by depth, height and width.
        padding: zeros on both sides.
        dilation: as of the convolution.
        segments: of input channels, which the nonzeros are marked by.
        nonzeros: their number.
        bounds: the activation: ``(0, inf)`` for ReLU.
        residual: a value of the result's shape to add before the activation.
    """

    source: int
    weights: DHW
    in_channels: int
    out_channels: int
    kernel: DHW
    stride: DHW
    padding: DHW
    dilation: DHW
    segments: int
    nonzeros: int
    bounds: tuple[float, float] = NO_BOUNDS
    residual: int | None = None

    @property
    def operands(self) -> tuple[int, ...]:
        """What it reads."""
        return (self.source,) if self.residual is None else (self.source, self.residual)

    @property
    def codes(self) -> int:
        """Elements of a window, of all channels."""
        return self.in_channels * math.prod(self.kernel)


@dataclass(frozen=True)
class Pool:
    """The largest of each window, or its mean with zeros outside of the image counted.

    Attributes:
        source: the value that it reads.
        largest: which of the two.
        kernel: depth, height and width of the window.
        stride: as of the pooling; these and the following by depth, height and width.
        padding: on both sides.
        ceil: whether the last window may reach beyond the padding; of the largest alone.
    """

    source: int
    largest: bool
    kernel: DHW
    stride: DHW
    padding: DHW
    ceil: bool = False

    @property
    def operands(self) -> tuple[int, ...]:
        """The source."""
        return (self.source,)


@dataclass(frozen=True)
class Mean:
    """The mean of each channel's image, one element large."""

    source: int

    @property
    def operands(self) -> tuple[int, ...]:
        """The source."""
        return (self.source,)


@dataclass(frozen=True)
class Pointwise:
    """Arithmetic element by element.

    Attributes:
        source: the value whose shape the result has.
        other: a second value, of the same shape or with one element a channel; None for none.
        operation: what is done with it: one of :data:`OPERATION_NAMES`; empty for none.
        weights: where the factors by channel, then the summands, begin in the region's values; applied first.
        channels: how many of them there are.
        function: the activation's name; applied before the bounds.
        bounds: the smallest and the largest result.
    """

    source: int
    other: int | None = None
    operation: str = ""
    weights: int | None = None
    channels: int | None = None
    function: str = "identity"
    bounds: tuple[float, float] = NO_BOUNDS

    @property
    def operands(self) -> tuple[int, ...]:
        """What it reads."""
        return (self.source,) if self.other is None else (self.source, self.other)


@dataclass(frozen=True)
class Concatenate:
    """Several values' channels, one after the other."""

    sources: tuple[int, ...]

    @property
    def source(self) -> int:
        """The first."""
        return self.sources[0]

    @property
    def operands(self) -> tuple[int, ...]:
        """All sources."""
        return self.sources


Instruction: TypeAlias = Convolution | Pool | Mean | Pointwise | Concatenate
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Convolution, Pool, Mean, Pointwise, Concatenate)}


@dataclass(frozen=True)
class RegionProgram:
    """A region.

    Attributes:
        dims: dimensions of an image, 1 to 3; 0 where the inputs are rows ``[..., channels]``.
        inputs: number of input values.
        instructions: in the order of computation.
        outputs: the values that the region returns.
        flat: those of its inputs and outputs that are ``[N, C]``: images of one element.
    """

    dims: int
    inputs: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    flat: tuple[int, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Made once, since every call of a region looks for its plan by it."""
        return hash((self.dims, self.inputs, self.instructions, self.outputs, self.flat))

    @property
    def text(self) -> str:
        """As JSON: what files hold and the operator is given."""
        listed = [{"kind": type(item).__name__, **asdict(item)} for item in self.instructions]
        content = {
            "dims": self.dims,
            "inputs": self.inputs,
            "instructions": listed,
            "outputs": self.outputs,
            "flat": self.flat,
        }
        return json.dumps(content, separators=(",", ":"))


@lru_cache(maxsize=1024)
def read_program(text: str) -> RegionProgram:
    """A program from its text."""
    content = json.loads(text)
    instructions = tuple(_instruction(item) for item in content["instructions"])
    outputs, flat = tuple(content["outputs"]), tuple(content.get("flat", ()))
    return RegionProgram(content["dims"], content["inputs"], instructions, outputs, flat)


def _instruction(item: dict[str, Any]) -> Instruction:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}
    made: Instruction = _KINDS[str(fields.pop("kind"))](**fields)
    return made
