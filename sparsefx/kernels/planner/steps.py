"""The steps of a plan: what each reads, writes and calls."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsefx.kernels.codegen.builder import Kernel
from sparsefx.kernels.codegen.convolution import convolution
from sparsefx.kernels.codegen.pointwise import Form, pointwise
from sparsefx.kernels.codegen.pooling import mean, pool
from sparsefx.kernels.codegen.vectors import VECTOR_BYTES
from sparsefx.kernels.ir.program import NO_BOUNDS, Convolution, Pointwise, Pool
from sparsefx.kernels.planner.lanes import Layout
from sparsefx.kernels.planner.tiling import Tiling, channel_parts, moving, tiling_cost


@dataclass(frozen=True)
class Address:
    """A place in memory, known when the plan runs.

    Attributes:
        base: what it counts from: ``"memory"``, the plan's own; ``"cells"``, the array of arguments; or the
            number of a tensor outside.
        offset: bytes from there.
    """

    base: int | str
    offset: int = 0

    def __add__(self, more: int) -> Address:
        return replace(self, offset=self.offset + more)


Argument: TypeAlias = int | Address | NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float32]
KernelCall: TypeAlias = tuple[Kernel, Mapping[str, Argument]]


@dataclass
class LaneValue:
    """A result in lanes.

    Attributes:
        layout: its borders grow with the steps that read it.
        nonnegative: whether it comes out of a ReLU.
        outside: what its border is filled with.
        bordered: whether any step reads its border, or counts on zeros in lanes outside of the image.
        address: where it is, set last.
    """

    layout: Layout
    nonnegative: bool = False
    outside: float = 0.0
    bordered: bool = False
    address: Address = Address("memory")

    @property
    def start(self) -> Address:
        """Its first element inside of the border."""
        return self.address + self.layout.start


class Step(ABC):
    """Something to compute, whose layouts are settled when ``calls`` is called.

    Attributes:
        reads: values that must still be there.
        writes: the value that it makes, or adds to.
    """

    reads: tuple[LaneValue, ...] = ()
    writes: LaneValue | None = None

    @abstractmethod
    def calls(self) -> Iterator[KernelCall]:
        """Kernels and their arguments."""

    @property
    def scratch(self) -> int:
        """Bytes of memory that it needs for itself."""
        return 0

    @property
    def cost(self) -> float:
        """Cycles that one thread takes, about: here those of moving all that it reads and writes."""
        values = (*self.reads, *([self.writes] if self.writes else []))
        return sum(moving(value.layout.bytes) for value in values)


@dataclass
class Convolve(Step):
    """A sparse convolution."""

    item: Convolution
    weights: tuple[Address, ...]
    source: LaneValue
    target: LaneValue
    residual: LaneValue | None
    tiling: Tiling
    threads: int
    room: Address = Address("memory")

    def __post_init__(self) -> None:
        self.reads = (self.source, *([] if self.residual is None else [self.residual]))
        self.writes = self.target

    @property
    def scratch(self) -> int:
        """Waiting sums of each thread."""
        return self.threads * self._waiting if self._blocks > 1 else 0

    @property
    def cost(self) -> float:
        """Besides moving, what the tiling costs."""
        size, pitch = self.target.layout.tile, self.source.layout.pitch
        return super().cost + tiling_cost(self.tiling, self.item, size, pitch)

    @property
    def _channel_parts(self) -> int:
        tiles = self.tiling.tile.count(self.target.layout.tile)
        return channel_parts(tiles, self.item.out_channels, self.threads)

    def _offsets(self) -> NDArray[np.int32]:
        """Vectors from a window's first element to what each code stands for."""
        source = self.source.layout
        taps = window(source, self.item.kernel, self.item.dilation)
        channels = np.arange(self.item.in_channels, dtype=np.int64) * source.channel
        return ((channels[:, None] + taps) // VECTOR_BYTES).astype(np.int32)

    @property
    def _waiting(self) -> int:
        return self.item.out_channels * self.tiling.tile.positions * VECTOR_BYTES

    @property
    def _blocks(self) -> int:
        return -(-self.item.segments // self.tiling.together)

    def calls(self) -> Iterator[KernelCall]:
        """One kernel for everything."""
        rows, codes, values, bias = self.weights
        source, target = self.source.layout, self.target.layout
        low, high = map(float_bits, self.item.bounds)
        depth, height, width = target.tile
        offsets = self._offsets()
        direct = bool((offsets.ravel() == np.arange(offsets.size)).all())
        arguments: dict[str, Argument] = {
            "scratch": self.room,
            "scratch_step": self._waiting,
            "parts": self._channel_parts,
            "rows": rows,
            "codes": codes,
            "values": values,
            "bias": bias,
            "channels": self.item.out_channels,
            "segments": self.item.segments,
            "together": self.tiling.together,
            "blocks": self._blocks,
            "low": low,
            "high": high,
            "depth": depth,
            "height": height,
            "width": width,
            "offsets": offsets,
            "source": first_window(self.source, self.item.padding),
            **positions("source", source, self.item.stride),
            "target": self.target.start,
            **positions("target", target),
            "residual": 0 if self.residual is None else self.residual.start,
            **positions("residual", target if self.residual is None else self.residual.layout),
        }
        yield convolution(replace(self.tiling.tile, direct=direct)), arguments


@dataclass
class PoolWindows(Step):
    """The largest or the mean of each window."""

    item: Pool
    source: LaneValue
    target: LaneValue

    def __post_init__(self) -> None:
        self.reads, self.writes = (self.source,), self.target

    def calls(self) -> Iterator[KernelCall]:
        """One kernel."""
        taps = window(self.source.layout, self.item.kernel, (1, 1, 1))
        arguments: dict[str, Argument] = {
            **image(self.target.layout),
            "taps": taps,
            "window": len(taps),
            "scale": float_bits(1 / len(taps)),
            "across": self.item.stride[2] * VECTOR_BYTES,
            "source": first_window(self.source, self.item.padding),
            **positions("source", self.source.layout, self.item.stride),
            "target": self.target.start,
            **positions("target", self.target.layout),
        }
        yield pool(self.item.largest), arguments


@dataclass
class MeanOfImage(Step):
    """The mean of each channel's image."""

    source: LaneValue
    target: LaneValue

    def __post_init__(self) -> None:
        self.reads, self.writes = (self.source,), self.target

    def calls(self) -> Iterator[KernelCall]:
        """One kernel."""
        layout = self.source.layout
        steps = positions("source", layout)
        arguments: dict[str, Argument] = {
            **image(layout),
            "scale": float_bits(1 / int(np.prod(layout.size))),
            "source": self.source.start,
            **steps,
            "target": self.target.start,
            "target_channel": self.target.layout.channel,
        }
        yield mean(layout.split.parts), arguments


@dataclass
class Compute(Step):
    """Arithmetic element by element."""

    item: Pointwise
    factors: tuple[Address, ...] | None
    source: LaneValue
    other: LaneValue | None
    target: LaneValue

    def __post_init__(self) -> None:
        self.reads = (self.source, *([] if self.other is None else [self.other]))
        self.writes = self.target

    def calls(self) -> Iterator[KernelCall]:
        """One kernel."""
        arguments = {
            **_elementwise(self.source, self.target, self.item.bounds),
            "target": self.target.start,
        }
        if self.factors is not None:
            arguments |= dict(zip(("scale", "shift"), self.factors, strict=True))
        if self.other is not None:
            is_single = self.other.layout.size != self.source.layout.size
            arguments |= {
                "other": self.other.start,
                **positions("other", self.other.layout, (0, 0, 0) if is_single else (1, 1, 1)),
                "other_column": 0 if is_single else VECTOR_BYTES,
            }
        form = Form(self.factors is not None, self.item.operation, self.item.function)
        yield pointwise(form), arguments


@dataclass
class Copy(Step):
    """A value as some of the channels of another, from ``first`` on."""

    source: LaneValue
    target: LaneValue
    first: int

    def __post_init__(self) -> None:
        self.reads, self.writes = (self.source,), self.target

    def calls(self) -> Iterator[KernelCall]:
        """One kernel."""
        start = self.target.start + self.first * self.target.layout.channel
        yield pointwise(Form()), {**_elementwise(self.source, self.target, NO_BOUNDS), "target": start}


def _elementwise(source: LaneValue, target: LaneValue, bounds: tuple[float, float]) -> dict[str, Argument]:
    low, high = map(float_bits, bounds)
    return {
        **image(source.layout),
        "low": low,
        "high": high,
        "source": source.start,
        **positions("source", source.layout),
        **positions("target", target.layout),
    }


def positions(side: str, layout: Layout, stride: tuple[int, int, int] = (1, 1, 1)) -> dict[str, Argument]:
    """Bytes from one channel, and from one window's plane and row, to the next."""
    return {
        f"{side}_channel": layout.channel,
        f"{side}_depth": layout.depth * stride[0],
        f"{side}_row": layout.row * stride[1],
    }


def image(layout: Layout) -> dict[str, Argument]:
    """What a kernel goes over."""
    depth, height, width = layout.tile
    return {"channels": layout.channels, "depth": depth, "height": height, "width": width}


def window(layout: Layout, kernel: tuple[int, int, int], dilation: tuple[int, int, int]) -> NDArray[np.int64]:
    """Byte offset of each of a window's elements from its first."""
    steps = (layout.depth, layout.row, VECTOR_BYTES)
    offsets = np.indices(kernel).reshape(3, -1) * np.array(dilation)[:, None] * np.array(steps)[:, None]
    total: NDArray[np.int64] = offsets.sum(0).astype(np.int64)
    return total


def first_window(value: LaneValue, padding: tuple[int, int, int]) -> Address:
    """The first element of the first window, which is in the border where there is padding."""
    steps = (value.layout.depth, value.layout.row, VECTOR_BYTES)
    return value.start + -sum(pad * step for pad, step in zip(padding, steps, strict=True))


def float_bits(value: float) -> int:
    """A float's 32 bits as an integer."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
