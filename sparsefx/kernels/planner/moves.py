"""Steps that move values: into lanes, from one layout to another, to borders, out of lanes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sparsefx.kernels.codegen.moving import exchange, gather, scatter
from sparsefx.kernels.codegen.transposing import pack_transposed, unpack_transposed
from sparsefx.kernels.codegen.vectors import LANES, VECTOR_BYTES
from sparsefx.kernels.planner.lanes import Layout, Offsets
from sparsefx.kernels.planner.steps import Address, Argument, KernelCall, LaneValue, Step, float_bits
from sparsefx.kernels.planner.tiling import moving


@dataclass(frozen=True)
class OutsideTensor:
    """A tensor outside of the plan: where each element is.

    Attributes:
        address: of its first element.
        images: how many there are; lanes beyond hold none.
        steps: elements from one image, plane, row and column to the next.
        channel: elements from one channel to the next.
    """

    address: Address
    images: int
    steps: tuple[int, int, int, int]
    channel: int

    def is_transposed(self, layout: Layout) -> bool:
        """Whether channels are neighbours, and enough of them to be moved together."""
        return self.channel == 1 and layout.channels >= LANES

    def elements(self, layout: Layout) -> Offsets:
        """For each lane of each place of a channel, its element; -1 for none."""
        where = layout.coordinates()
        offsets = np.tensordot(np.array(self.steps), where, axes=1)
        return np.where((where[0] < 0) | (where[0] >= self.images), -1, offsets).astype(np.int32)


@dataclass
class PackLanes(Step):
    """A tensor from outside, into lanes."""

    source: OutsideTensor
    target: LaneValue

    def __post_init__(self) -> None:
        self.writes = self.target

    def calls(self) -> Iterator[KernelCall]:
        """All places, the border's too."""
        layout = self.target.layout
        elements = self.source.elements(layout)
        if self.source.is_transposed(layout):
            moved = _moved(self.source.address, self.target.address, layout, layout.places(), elements)
            yield pack_transposed(), moved | {"lanes_channel": layout.channel}
        else:
            yield _gathered(self.target, elements, 4 * self.source.channel, self.source.address)


@dataclass
class UnpackLanes(Step):
    """Lanes, into a tensor outside."""

    source: LaneValue
    target: OutsideTensor

    def __post_init__(self) -> None:
        self.reads = (self.source,)

    def calls(self) -> Iterator[KernelCall]:
        """The places inside of the border."""
        layout = self.source.layout
        own = layout.own()
        places, elements = layout.places()[own], self.target.elements(layout)[own]
        moved = _moved(self.source.address, self.target.address, layout, places, elements)
        if self.target.is_transposed(layout):
            yield unpack_transposed(), moved | {"lanes_channel": layout.channel}
        else:
            channels = {"source_channel": layout.channel, "target_channel": 4 * self.target.channel}
            yield scatter(), moved | channels


@dataclass
class ConvertLayout(Step):
    """A value in another layout; ``everywhere``: its one element a channel in every lane of an image."""

    source: LaneValue
    target: LaneValue
    everywhere: bool = False

    def __post_init__(self) -> None:
        self.reads, self.writes = (self.source,), self.target

    def calls(self) -> Iterator[KernelCall]:
        """All places, the border's too."""
        source = self.source.layout
        where = self.target.layout.coordinates()
        if self.everywhere:
            where = np.zeros_like(where)
            where[0] = np.arange(LANES) // self.target.layout.split.parts
        elements = source.elements(where)
        yield _gathered(self.target, elements, source.channel, self.source.address)


@dataclass
class FillBorder(Step):
    """What surrounds a tile: zeros, or what the neighbouring lanes hold."""

    value: LaneValue

    def __post_init__(self) -> None:
        self.reads, self.writes = (self.value,), self.value

    @property
    def cost(self) -> float:
        """Of the border's share of the value."""
        layout = self.value.layout
        return moving(layout.channels * (layout.channel - layout.bare.channel)) if self.value.bordered else 0

    def calls(self) -> Iterator[KernelCall]:
        """The places of the border, and those inside that have lanes outside of the image.

        A place's lanes all come from one other place: the border continues the tile by whole tiles.
        """
        if not self.value.bordered:
            return
        layout = self.value.layout
        elements = layout.elements(layout.coordinates())
        chosen = np.flatnonzero(~layout.own() | (elements < 0).any(1))
        if not chosen.size:
            return
        places, once = np.unique(layout.places()[chosen], return_index=True)  # rows may share their border
        elements = elements[chosen[once]]
        lanes = np.where(elements < 0, -1, elements % LANES)
        patterns, which = np.unique(lanes, axis=0, return_inverse=True)
        order = np.argsort(which.ravel(), kind="stable")
        ends = np.bincount(which.ravel()).cumsum()
        arguments: dict[str, Argument] = {
            "target": self.value.address,
            "places": places[order],
            "origins": np.maximum(elements.max(1) // LANES, 0)[order] * np.int32(VECTOR_BYTES),
            **{f"end_{index}": int(end) for index, end in enumerate(ends)},
            "channels": layout.channels,
            "target_channel": layout.channel,
        }
        yield exchange(tuple(tuple(int(lane) for lane in pattern) for pattern in patterns)), arguments


def _gathered(target: LaneValue, elements: Offsets, channel: int, source: Address) -> KernelCall:
    layout = target.layout
    return gather(), _moved(source, target.address, layout, layout.places(), elements) | {
        "source_channel": channel,
        "target_channel": layout.channel,
        "fill": float_bits(target.outside),
    }


def _moved(
    source: Address, target: Address, layout: Layout, places: Offsets, elements: Offsets
) -> dict[str, Argument]:
    """What all kernels between lanes and elsewhere are told."""
    return {
        "source": source,
        "target": target,
        "places": places,
        "elements": elements,
        "count": len(places),
        "channels": layout.channels,
    }
