"""Sparse convolution: for each output position, the sum of weight times input over the nonzero weights alone.

A tile of ``height`` x ``width`` positions, 16 lanes each, stays in registers while the nonzero weights of
one output channel pass by; each is one broadcast and ``height * width`` fused multiply-adds that read their
input from memory. Input channels are taken in blocks, so that the inputs of a tile stay in the first-level
cache while all output channels read them; between blocks the sums wait in scratch memory. A block is several
of the segments that the weights are marked in. A linear layer is a convolution with one tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sparsefx.kernels.codegen.builder import F32, I16, I32, I64, VECTOR, Code, IRValue, Kernel, number
from sparsefx.kernels.codegen.vectors import VECTOR_BYTES

ARGUMENTS = (
    *("*source", "*target", "*residual", "*scratch", "scratch_step"),
    *("*rows", "*codes", "*values", "*bias", "*offsets", "channels", "parts"),
    *("segments", "together", "blocks"),
    *("depth", "height", "width", "low", "high"),
    *("source_depth", "source_row"),
    *("target_channel", "target_depth", "target_row"),
    *("residual_channel", "residual_depth", "residual_row"),
)
"""Steps are in bytes, those of the source of one output position. ``low`` and ``high`` are the bits of the
activation's bounds; ``rows[channel * segments + segment]`` is where the nonzeros of a segment of an output
channel begin, ``together`` of which are a block. ``offsets`` has for every code the vectors from a window's
first element to the one that it stands for; where they are the codes themselves, it is not read."""

_LINE_BYTES = 64
_VISITS = 3  # output channels from asking for weights to using them
_AHEAD = 96  # nonzeros that are asked for; what follows them, processors guess


@dataclass(frozen=True)
class Tile:
    """What one compiled variant computes at a time.

    Attributes:
        height: positions of a tile along the rows.
        width: positions of a tile in a row.
        unroll: nonzeros at once, each with sums of its own: small tiles need several to keep the unit busy.
        stride: input positions from one output position to the next in a row.
        short: whether codes have 16 bits.
        direct: whether a code is how many vectors from a window's first element its own one is.
        spread: positions of the target, and of the residual, from one output position to the next in a row.
    """

    height: int
    width: int
    unroll: int = 1
    stride: int = 1
    short: bool = True
    direct: bool = False
    spread: int = 1

    def count(self, size: tuple[int, int, int]) -> int:
        """Tiles that cover an image."""
        depth, height, width = size
        return depth * -(-height // self.height) * -(-width // self.width)

    @property
    def positions(self) -> int:
        """Output positions of a tile."""
        return self.height * self.width


@cache
def convolution(tile: Tile) -> Kernel:
    """The kernel for tiles of this form. The image must be at least as large as a tile."""
    code = Code(ARGUMENTS)
    high, wide = (_tiles(code, size, step) for size, step in (("height", tile.height), ("width", tile.width)))
    total = code.mul(code.mul(code["parts"], code["depth"]), code.mul(high, wide))
    scratch = code.at(code["scratch"], code.mul(code.thread, code["scratch_step"]))
    with code.loop(*code.share(total)) as item:
        part, depth, row, column = code.digits(item, code["depth"], high, wide)
        y = code.smaller(code.mul(row, number(tile.height)), code.sub(code["height"], number(tile.height)))
        x = code.smaller(code.mul(column, number(tile.width)), code.sub(code["width"], number(tile.width)))
        _tile(code, tile, scratch, part, (depth, y, x))
    return code.finish()


def _tiles(code: Code, size: str, step: int) -> IRValue:
    return code.sdiv(code.add(code[size], number(step - 1)), number(step))


def _tile(
    code: Code, tile: Tile, scratch: IRValue, part: IRValue, place: tuple[IRValue, IRValue, IRValue]
) -> None:
    """All output channels of a part, at one place."""
    source = _pointer(code, "source", place, tile.stride * VECTOR_BYTES)
    target = _pointer(code, "target", place, tile.spread * VECTOR_BYTES)
    residual = _pointer(code, "residual", place, tile.spread * VECTOR_BYTES)
    channels, last = code["channels"], code.sub(code["blocks"], number(1))
    first, end = (code.sdiv(code.mul(n, channels), code["parts"]) for n in (part, code.add(part, number(1))))
    with code.loop(number(0), code["blocks"]) as block, code.loop(first, end) as channel:
        bounds = _segments(code, block, channel)
        _fetch(code, tile, block, channel)
        waiting = code.at(scratch, code.mul(channel, number(tile.positions * VECTOR_BYTES)))
        sums = _begin(code, tile, block, channel, waiting)
        sums = _accumulate(code, tile, source, bounds, sums)
        with code.if_else(code.icmp_signed("==", block, last)) as (done, more):
            with done:
                _finish(code, tile, sums, channel, target, residual)
            with more:
                for index, value in enumerate(sums):
                    code.write_vector(value, waiting, number(index * VECTOR_BYTES))


def _segments(code: Code, block: IRValue, channel: IRValue) -> tuple[IRValue, IRValue]:
    """Where the nonzeros of a block begin and end in an output channel's."""
    before, first = code.mul(channel, code["segments"]), code.mul(block, code["together"])
    last = code.smaller(code.add(first, code["together"]), code["segments"])
    return (
        code.read_index(code["rows"], code.add(before, first)),
        code.read_index(code["rows"], code.add(before, last)),
    )


def _fetch(code: Code, tile: Tile, block: IRValue, channel: IRValue) -> None:
    """Ask for the weights of a later output channel, which are elsewhere: processors do not guess where."""
    last = code.sub(code["channels"], number(1))
    soon, later = (code.smaller(code.add(channel, number(n * _VISITS)), last) for n in (1, 2))
    first = code.mul(block, code["together"])
    row, row_later = (code.add(code.mul(n, code["segments"]), first) for n in (soon, later))
    start = code.read_index(code["rows"], row)
    code.fetch(code["rows"], code.mul(row_later, number(4)))
    for name, size in (("codes", 2 if tile.short else 4), ("values", 4)):
        for ahead in range(0, size * _AHEAD, _LINE_BYTES):
            code.fetch(code[name], code.mul(start, number(size)), number(ahead))


def _pointer(code: Code, name: str, place: tuple[IRValue, IRValue, IRValue], step: int) -> IRValue:
    depth, y, x = place
    steps = (
        code.mul(depth, code[f"{name}_depth"]),
        code.mul(y, code[f"{name}_row"]),
        code.mul(x, number(step)),
    )
    return code.at(code[name], *steps)


def _begin(code: Code, tile: Tile, block: IRValue, channel: IRValue, waiting: IRValue) -> list[IRValue]:
    """The sums so far: the bias at first."""
    fresh, resumed, join = (code.append_basic_block(name) for name in ("fresh", "resumed", "join"))
    code.cbranch(code.icmp_signed("==", block, number(0)), fresh, resumed)
    code.position_at_end(fresh)
    bias = code.spread(code.read(code["bias"], channel, F32))
    code.branch(join)
    code.position_at_end(resumed)
    before = [code.read_vector(waiting, number(index * VECTOR_BYTES)) for index in range(tile.positions)]
    code.branch(join)
    code.position_at_end(join)
    sums = []
    for value in before:
        phi = code.phi(value.type)
        phi.add_incoming(bias, fresh)
        phi.add_incoming(value, resumed)
        sums.append(phi)
    return sums


def _accumulate(
    code: Code, tile: Tile, source: IRValue, bounds: tuple[IRValue, IRValue], sums: list[IRValue]
) -> list[IRValue]:
    """Add the products of a channel's nonzeros."""
    start, stop = bounds
    if tile.unroll > 1:
        whole = code.sub(stop, code.srem(code.sub(stop, start), number(tile.unroll)))
        zero = code.spread(F32(0.0))
        initial = sums + [zero] * (tile.positions * (tile.unroll - 1))
        with code.loop_carrying(start, whole, initial, tile.unroll) as (index, carried, following):
            for turn in range(tile.unroll):
                own = carried[turn * tile.positions : (turn + 1) * tile.positions]
                following += _products(code, tile, source, code.add(index, number(turn)), own)
        sums = carried[: tile.positions]
        for turn in range(1, tile.unroll):
            others = carried[turn * tile.positions : (turn + 1) * tile.positions]
            sums = [code.fadd(total, more) for total, more in zip(sums, others, strict=True)]
        start = whole
    with code.loop_carrying(start, stop, sums) as (index, carried, following):
        following += _products(code, tile, source, index, carried)
    return carried


def _products(code: Code, tile: Tile, source: IRValue, index: IRValue, sums: list[IRValue]) -> list[IRValue]:
    """One nonzero times the tile's inputs, added to the sums."""
    packed = code.zext(code.read(code["codes"], index, I16 if tile.short else I32), I64)
    weight = code.spread(code.read(code["values"], index, F32))
    offset = packed if tile.direct else code.read_index(code["offsets"], packed)
    pointer = code.element(source, offset, VECTOR)
    result: list[IRValue] = []
    for row in range(tile.height):
        line = code.at(pointer, code.mul(code["source_row"], number(row)))
        for column in range(tile.width):
            inputs = code.read_vector(line, number(column * tile.stride * VECTOR_BYTES))
            result.append(code.call_vector("llvm.fma", inputs, weight, sums[len(result)]))
    return result


def _finish(
    code: Code, tile: Tile, sums: list[IRValue], channel: IRValue, target: IRValue, residual: IRValue
) -> None:
    """Add the residual, where there is one, apply the activation and store."""
    low, high = code.bits_as_float("low"), code.bits_as_float("high")
    places = [divmod(index, tile.width) for index in range(tile.positions)]
    step = tile.spread * VECTOR_BYTES
    plain, adding, join = (code.append_basic_block(name) for name in ("plain", "adding", "store"))
    absent = code.icmp_signed("==", code.ptrtoint(code["residual"], I64), number(0))
    code.cbranch(absent, plain, adding)
    code.position_at_end(plain)
    code.branch(join)
    code.position_at_end(adding)
    base = code.at(residual, code.mul(channel, code["residual_channel"]))
    added = []
    for value, (row, column) in zip(sums, places, strict=True):
        line = code.at(base, code.mul(code["residual_row"], number(row)))
        added.append(code.fadd(value, code.read_vector(line, number(column * step))))
    code.branch(join)
    code.position_at_end(join)
    results = []
    for value, with_residual in zip(sums, added, strict=True):
        phi = code.phi(value.type)
        phi.add_incoming(value, plain)
        phi.add_incoming(with_residual, adding)
        results.append(phi)
    base = code.at(target, code.mul(channel, code["target_channel"]))
    for value, (row, column) in zip(results, places, strict=True):
        line = code.at(base, code.mul(code["target_row"], number(row)))
        code.write_vector(code.clamp(value, low, high), line, number(column * step))
