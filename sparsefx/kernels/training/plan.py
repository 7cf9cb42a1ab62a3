"""The kernels of a training step, and where their arguments are: what both passes have in common.

:class:`Draft` knows the layouts, writes calls of kernels and gives out memory. ``forward`` and ``backward``
go through a program with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsefx.kernels.codegen.convolution import convolution
from sparsefx.kernels.codegen.moving import gather, scatter
from sparsefx.kernels.codegen.training.combine import Pooling, Sum, combine, pooled
from sparsefx.kernels.codegen.training.reorder import reorder
from sparsefx.kernels.codegen.training.weight_gradient import GradientTile
from sparsefx.kernels.codegen.transposing import pack_transposed, unpack_transposed
from sparsefx.kernels.codegen.vectors import LANES, VECTOR_BYTES
from sparsefx.kernels.ir.program import DHW, Convolution
from sparsefx.kernels.planner.steps import Address, Argument, KernelCall, float_bits
from sparsefx.kernels.planner.tiling import channel_parts, choose_tiling
from sparsefx.kernels.training.arena import Arena
from sparsefx.kernels.training.blocks import Blocks, groups_together
from sparsefx.kernels.training.checks import Image
from sparsefx.kernels.training.forms import LayerState, NormState, TensorForm, as_int32
from sparsefx.kernels.training.patterns import Listed, Phase, phases
from sparsefx.kernels.training.program import (
    Combination,
    Concatenation,
    SparseConvolution,
    Summand,
    TrainingProgram,
)

_WANTED = 8 if LANES == 8 else 16  # vectors of a block's image, so that a weight meets some
_MOST_HELD = 12 if LANES == 8 else 16  # vectors of a gradient that stay in registers

STATISTICS = ("mean", "inverse", "scale", "shift")
"""Arrays by channel that a normalisation makes, in the order in which they lie in memory."""


@dataclass
class Draft:
    """A step of a program that is being written.

    Attributes:
        program: what is computed.
        sources: the forms of the inputs.
        shapes: one image of every value.
        layers: of the convolutions.
        norms: of the normalisations.
        needed: the inputs whose gradient is wanted.
        threads: that compute together.
    """

    program: TrainingProgram
    sources: tuple[TensorForm, ...]
    shapes: Sequence[Image]
    layers: Sequence[LayerState]
    norms: Sequence[NormState]
    needed: tuple[int, ...]
    threads: int
    calls: list[KernelCall] = field(default_factory=list)
    kept: Arena = field(default_factory=Arena)
    scratch: Arena = field(default_factory=Arena)
    names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = self.sources[0].shape[0]
        self.places: dict[int, int] = {}
        self.statistics: dict[tuple[int, int], int] = {}
        self.values = self._layouts()

    def tensor(self, name: str, offset: int = 0) -> Address:
        """A tensor from outside, by its name."""
        return Address(self.names.setdefault(name, len(self.names)), offset)

    def _layouts(self) -> list[Blocks]:
        """Of each value, without borders."""
        program = self.program
        layouts: list[Blocks] = []
        for value, (channels, size) in enumerate(self.shapes):
            made = program.of(value)
            readers = [program.of(user) for user in program.users(value)]
            reading = [reader for reader in readers if isinstance(reader, SparseConvolution)]
            if isinstance(made, SparseConvolution):
                together = layouts[made.source].together
            elif reading:
                strided = any(reader.stride[2] > 1 for reader in reading)
                together = 1 if strided else groups_together(self.images, size_of(reading, size), _WANTED)
            elif made is not None:
                together = layouts[made.operands[0]].together
            else:
                together = 1
            layouts.append(Blocks(channels, size, self.images, together))
            if isinstance(made, Combination) and made.noise is not None:
                layouts[made.noise] = layouts[-1]
        return layouts

    # -- calls -----------------------------------------------------------------------------------------

    def call(self, kernel: Any, arguments: Mapping[str, Argument]) -> None:
        """Write a call."""
        self.calls.append((kernel, arguments))

    def keep(self, value: int) -> None:
        """Memory for a value that stays until the backward pass."""
        self.places[value] = self.kept.take(self.values[value].bytes)

    def kept_at(self, value: int, block: int) -> Address:
        """A block of a value that stays."""
        return self.tensor("kept", self.places[value] + block * self.values[value].block)

    def pieces(
        self, block: int, *sides: tuple[str, Blocks, Address], whole: bool = True
    ) -> Iterator[tuple[int | None, dict[str, Argument]]]:
        """Arguments of a kernel that goes over a block of images: for all groups, or for one at a time.

        Args:
            block: its number, of the layout of the first side.
            sides: name, layout and beginning of each; of another number of groups, the beginning of all.
            whole: whether all groups may be taken at once.

        Yields:
            The group, or None for all of the block; and where each side is.
        """
        together = sides[0][1].together
        if whole and all(layout.together == together for _, layout, _ in sides):
            arguments: dict[str, Argument] = {}
            for name, layout, start in sides:
                arguments |= _side(name, layout, start + layout.start, VECTOR_BYTES)
            yield None, arguments
            return
        for group in range(block * together, min((block + 1) * together, sides[0][1].groups)):
            arguments = {}
            for name, layout, start in sides:
                where = start + layout.start + group % layout.together * VECTOR_BYTES
                if layout.together != together:
                    where += (group // layout.together) * layout.block
                arguments |= _side(name, layout, where, layout.steps[2])
            yield group, arguments

    def image(self, layout: Blocks, group: int | None) -> dict[str, Argument]:
        """What a kernel goes over."""
        depth, height, width = layout.size
        columns = width if group is not None else layout.columns
        return {"channels": layout.channels, "depth": depth, "height": height, "width": columns}

    def clear(self, start: Address, layout: Blocks) -> None:
        """Zeros in a block, its border included."""
        whole = replace(layout, size=(*layout.pitch[:2], layout.pitch[2] // layout.together))
        bare = whole.bare
        self.call(combine(Sum(())), _side("target", bare, start, VECTOR_BYTES) | self.image(bare, None))

    def sums(self, channels: int) -> Address:
        """Two sums of lanes for each channel, at 0."""
        layout = Blocks(channels, (1, 1, 2), LANES)
        start = Address("memory", self.scratch.take(layout.block))
        self.clear(start, layout)
        return start

    def is_whole(self, layout: Blocks, block: int) -> bool:
        """Whether every group of a block has images."""
        return (block + 1) * layout.together <= layout.groups

    def lanes(self, layout: Blocks, group: int) -> NDArray[np.float32]:
        """1 for each lane of a group that holds an image."""
        return _aligned((np.arange(LANES) < layout.filled(group)).astype(np.float32))

    # -- what both passes compute ------------------------------------------------------------------------

    def statistics_of(self, value: int, summand: Summand, name: str) -> Address:
        """One of the arrays by channel that a normalisation has made: mean, inverse, scale or shift."""
        assert summand.normalisation is not None
        index = STATISTICS.index(name)
        start = self.statistics[value, summand.normalisation.layer]
        return self.tensor("kept", start + 4 * index * self.values[summand.source].channels)

    def seen(self, item: SparseConvolution) -> Blocks:
        """A convolution's source as it reads it: where the window is the image, each element is a channel."""
        bare = self.values[item.source]
        if not item.whole:
            return bare
        return replace(bare, channels=bare.channels * math.prod(bare.size), size=(1, 1, 1))

    def source_layout(self, item: SparseConvolution, value: int) -> Blocks:
        """What a convolution reads: its source with zeros around it, also for the last tiles of positions."""
        bare, result = self.seen(item), self.values[value]
        if item.whole:
            return bare
        reached = covered(result, gradient_tile(result))
        after = [
            max(0, (length - 1) * step + (window - 1) * spread + 1 - pad - own)
            for length, step, window, spread, pad, own in zip(
                reached, item.stride, item.kernel, item.dilation, item.padding, bare.size, strict=True
            )
        ]
        return replace(bare, before=item.padding, after=(after[0], after[1], after[2]))

    def filled(self, item: SparseConvolution, block: int, layout: Blocks, room: Address) -> Address:
        """A block of a convolution's source where it can read it: where it is kept, or in ``room``."""
        value = item.source
        bare = self.values[value]
        layout = bare if item.whole else layout
        whole = self.is_whole(layout, block)
        if self.program.is_kept(value):
            if layout == bare and whole:
                return self.kept_at(value, block)
            made = Combination((Summand(value),))
        else:
            maker = self.program.of(value)
            assert isinstance(maker, Combination)
            made = maker
        if block == 0 or not whole:
            self.clear(room, layout)
        self.combined(made, value, block, layout, room, whole)
        return room

    def combined(
        self, item: Combination, value: int, block: int, layout: Blocks, target: Address, whole: bool
    ) -> None:
        """Compute a block of what stands between convolutions, into a layout."""
        sides = [("target", layout, target)]
        names = [f"source_{n}" for n in range(len(item.summands))] if item.windows is None else ["source"]
        for name, summand in zip(names, item.summands, strict=True):
            source = self.values[summand.source]
            same = source.together == layout.together
            sides.append((name, source, self.kept_at(summand.source, block if same else 0)))
        if item.noise is not None:
            sides.append(self.noise_side(item.noise, block, layout))
        scaled = tuple(summand.normalisation is not None for summand in item.summands)
        for group, arguments in self.pieces(block, *sides, whole=whole and (item.windows is None)):
            arguments |= self.image(layout, group)
            if item.windows is None:
                for n, summand in enumerate(item.summands):
                    if summand.normalisation is not None:
                        arguments[f"scale_{n}"] = self.statistics_of(value, summand, "scale")
                        arguments[f"shift_{n}"] = self.statistics_of(value, summand, "shift")
                form = Sum(scaled, item.activation, item.noise is not None)
                self.call(combine(form), arguments)
            else:
                arguments |= self.windows_arguments(item, value)
                self.call(pooled(Pooling(item.windows.largest, scaled[0], item.activation)), arguments)

    def noise_side(self, noise: int, block: int, beside: Blocks) -> tuple[str, Blocks, Address]:
        """The noise for a block of another layout."""
        layout = self.values[noise]
        return "noise", layout, self.kept_at(noise, block if layout.together == beside.together else 0)

    def parts(self, value: int, item: Concatenation) -> Iterator[tuple[int, int]]:
        """The sources of a concatenation, and where in a block of it each begins, in bytes."""
        first = 0
        for source in item.operands:
            yield source, first
            first += self.values[source].channels * self.values[value].channel

    def part_side(
        self,
        name: str,
        part: tuple[int, int],
        source: Blocks,
        block: int,
        at: Callable[[int, int], Address],
    ) -> tuple[str, Blocks, Address]:
        """The part of a concatenation that belongs to a block of a source.

        Args:
            name: of the side.
            part: the concatenation, and where in a block the source begins.
            source: the source's layout.
            block: of the source.
            at: where a block of a value is.
        """
        value, first = part
        layout = self.values[value]
        return name, layout, at(value, block if layout.together == source.together else 0) + first

    def windows_arguments(self, item: Combination, value: int) -> dict[str, Argument]:
        """What kernels of pooling are told about the windows."""
        assert item.windows is not None
        summand = item.summands[0]
        size = self.values[summand.source].size
        window = item.windows.window(size)
        arguments: dict[str, Argument] = {"factor": float_bits(1 / math.prod(window))}
        for n, axis in enumerate(("depth", "height", "width")):
            arguments |= {
                f"{axis}_size": size[n],
                f"{axis}_window": window[n],
                f"{axis}_step": item.windows.stride[n],
                f"{axis}_pad": item.windows.padding[n],
            }
        if summand.normalisation is not None:
            arguments |= {name: self.statistics_of(value, summand, name) for name in ("scale", "shift")}
        return arguments

    def convolve(
        self,
        listed: Listed,
        values: Address,
        bias: Address | NDArray[np.float32],
        channels: tuple[int, int],
        offsets: NDArray[np.int32],
        source: tuple[Address, DHW, DHW],
        target: tuple[Address, Blocks, DHW],
        count: DHW,
        kernel: DHW,
    ) -> None:
        """One convolution of a block.

        Args:
            listed: its nonzeros.
            values: of them.
            bias: of the output channels.
            channels: input and output channels.
            offsets: vectors from a window's first element to what each code stands for.
            source: the first window's first element; bytes from a window to the next, by plane and row, with
                the vectors from one to the next in a row as the last number; and the pitch.
            target: the first result, its layout, and the positions from one result to the next by axis.
            count: results along each axis, where the last one counts the vectors of a row.
            kernel: about how far a window reaches.
        """
        start, steps, pitch = source
        result, layout, spread = target
        item = Convolution(
            *(0, (0, 0, 0), *channels, kernel, (1, 1, steps[2]), (0, 0, 0), (1, 1, 1)),
            segments=listed.segments,
            nonzeros=listed.nonzeros,
        )
        tiling = choose_tiling(item, count, pitch)
        tile = replace(tiling.tile, short=listed.codes.element_size() == 2, spread=spread[2], stride=steps[2])
        blocks = -(-listed.segments // tiling.together)
        waiting = channels[1] * tile.positions * VECTOR_BYTES
        parts = channel_parts(tile.count(count), channels[1], self.threads)
        with self.scratch.borrowed(waiting * self.threads if blocks > 1 else 0) as room:
            self.call(
                convolution(tile),
                {
                    "scratch": Address("memory", room),
                    "scratch_step": waiting,
                    "parts": parts,
                    "rows": listed.rows.numpy(),
                    "codes": listed.codes.numpy(),
                    "values": values,
                    "bias": bias,
                    "channels": channels[1],
                    "segments": listed.segments,
                    "together": tiling.together,
                    "blocks": blocks,
                    "low": float_bits(-math.inf),
                    "high": float_bits(math.inf),
                    **dict(zip(("depth", "height", "width"), count, strict=True)),
                    "offsets": offsets,
                    "source": start,
                    "source_depth": steps[0],
                    "source_row": steps[1],
                    "target": result,
                    "target_channel": layout.channel,
                    "target_depth": layout.depth * spread[0],
                    "target_row": layout.row * spread[1],
                    "residual": 0,
                    "residual_channel": 0,
                    "residual_depth": 0,
                    "residual_row": 0,
                },
            )

    def reordered(self, layer: int, order: Tensor | None) -> tuple[Address, int | None]:
        """Nonzero weights of a layer in some order, and the scratch memory that they take, if any.

        Args:
            layer: number of the layer.
            order: which of the packed values each is: int64 [nonzeros]; None for their own order.
        """
        weight, positions = self.tensor(f"weight {layer}"), self.layers[layer].positions
        if order is not None:
            indices = as_int32(order.numpy())
            indices = indices if positions is None else positions[indices]
        elif positions is None:
            return weight, None
        else:
            indices = positions
        room = self.scratch.take(4 * len(indices))
        arguments: dict[str, Argument] = {"source": weight, "target": Address("memory", room)}
        self.call(reorder(), arguments | {"order": indices, "count": len(indices)})
        return Address("memory", room), room

    # -- outside -----------------------------------------------------------------------------------------

    def pack(self, tensor: Address, form: TensorForm, layout: Blocks, start: Address) -> None:
        """A tensor ``[N, C, *size]`` into lanes."""
        for group in range(layout.groups):
            arguments = self._moved(tensor, form, layout, start, group, into=True)
            if form.strides[1] == 1 and layout.channels >= LANES:
                self.call(pack_transposed(), arguments | {"lanes_channel": layout.channel})
            else:
                channels = {
                    "source_channel": 4 * form.strides[1],
                    "target_channel": layout.channel,
                    "fill": 0,
                }
                self.call(gather(), arguments | channels)

    def unpack(self, start: Address, layout: Blocks, tensor: Address, form: TensorForm) -> None:
        """Lanes into a tensor ``[N, C, *size]``."""
        for group in range(layout.groups):
            arguments = self._moved(tensor, form, layout, start, group, into=False)
            if form.strides[1] == 1 and layout.channels >= LANES:
                self.call(unpack_transposed(), arguments | {"lanes_channel": layout.channel})
            else:
                channels = {"source_channel": layout.channel, "target_channel": 4 * form.strides[1]}
                self.call(scatter(), arguments | channels)

    def _moved(
        self, tensor: Address, form: TensorForm, layout: Blocks, start: Address, group: int, into: bool
    ) -> dict[str, Argument]:
        filled = layout.filled(group)
        elements = self._elements(form, layout, filled)
        outside = tensor + 4 * group * LANES * form.strides[0]
        inside = start + group // layout.together * layout.block
        source, target = (outside, inside) if into else (inside, outside)
        return {
            "source": source,
            "target": target,
            "places": layout.places(group),
            "elements": elements,
            "count": len(elements),
            "channels": layout.channels,
        }

    def _elements(self, form: TensorForm, layout: Blocks, filled: int) -> NDArray[np.int32]:
        """For each lane of each place, its element in the tensor; -1 for none."""
        key = (form.strides, layout.size, filled)
        if key not in self._tables:
            where = np.tensordot(np.array(form.steps), np.indices(layout.size).reshape(3, -1), axes=1)
            lanes = np.arange(LANES)
            elements = where[:, None] + lanes * form.strides[0]
            self._tables[key] = as_int32(np.where(lanes < filled, elements, -1))
        return self._tables[key]

    @cached_property
    def _tables(self) -> dict[Any, NDArray[np.int32]]:
        return {}


def size_of(reading: Sequence[SparseConvolution], size: DHW) -> DHW:
    """Of the smallest image that convolutions make of one of this size."""
    return min((reader.size(size) for reader in reading), key=math.prod)


def gradient_tile(layout: Blocks) -> GradientTile:
    """The tile by which the weights' gradient goes over a result of this layout."""
    best = None
    _, height, _ = layout.size
    for rows in (1, 2, 4):
        for columns in range(1, _MOST_HELD + 1):  # so that small images need no zeros after them
            if rows * columns > _MOST_HELD or rows > height or columns > layout.columns:
                continue
            tiles = -(-height // rows) * -(-layout.columns // columns)
            cost = tiles * (rows * columns + 4)
            if best is None or cost < best[0]:
                best = cost, rows, columns
    assert best is not None
    return GradientTile(best[1], best[2])


def covered(layout: Blocks, tile: GradientTile) -> DHW:
    """Positions along each axis that whole tiles cover."""
    depth, height, _ = layout.size
    rows = -(-height // tile.height) * tile.height
    columns = -(-layout.columns // tile.width) * tile.width
    return depth, rows, -(-columns // layout.together)


@lru_cache(maxsize=256)
def offsets_of(layout: Blocks, channels: int, shifts: tuple[DHW, ...]) -> NDArray[np.int32]:
    """Vectors from a place to another one: for every channel, then every shift along the axes."""
    steps = np.array(layout.steps)
    taps = np.array(shifts, dtype=np.int64).reshape(-1, 3) @ steps
    places = np.arange(channels, dtype=np.int64)[:, None] * layout.channel + taps
    return as_int32(places // VECTOR_BYTES)


@lru_cache(maxsize=256)
def taps_of(item: SparseConvolution) -> tuple[DHW, ...]:
    """Every tap of a window, as positions from its first element."""
    depth, height, width = item.dilation
    return tuple((z * depth, y * height, x * width) for z, y, x in np.ndindex(*item.kernel))


def phases_of(item: SparseConvolution, size: DHW) -> list[Phase]:
    """Of a convolution's input of this size."""
    return list(phases(item.padding, size, kernel=item.kernel, stride=item.stride, dilation=item.dilation))


def _side(name: str, layout: Blocks, start: Address, column: int) -> dict[str, Argument]:
    return {
        name: start,
        f"{name}_channel": layout.channel,
        f"{name}_depth": layout.depth,
        f"{name}_row": layout.row,
        f"{name}_column": column,
    }


def _aligned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same numbers at an address that vectors can be read from."""
    room = np.empty(values.nbytes + VECTOR_BYTES, np.uint8)
    begin = -room.ctypes.data % VECTOR_BYTES
    result = room[begin : begin + values.nbytes].view(np.float32)
    result[:] = values
    return result
