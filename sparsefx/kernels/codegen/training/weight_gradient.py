"""The gradient of a convolution's weights, at the nonzeros alone.

A tile of the gradient of one output channel stays in registers while that channel's nonzeros pass by, in
the order of the forward pass. Each is the sum over the tile's positions, and over the lanes, of the
gradient times the input that the weight met: as many multiply-adds as in the forward pass. As many
nonzeros as there are lanes are computed together; a transposition then makes one vector of their sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from llvmlite import ir

from sparsefx.kernels.codegen.builder import (
    F32,
    I16,
    I32,
    I64,
    INDICES,
    MASK,
    POINTER,
    VECTOR,
    Code,
    IRValue,
    Kernel,
    number,
)
from sparsefx.kernels.codegen.training.images import ZERO
from sparsefx.kernels.codegen.vectors import LANES, VECTOR_BYTES

ARGUMENTS = (
    *("*source", "source_depth", "source_row"),
    *("*gradient", "gradient_channel", "gradient_depth", "gradient_row"),
    *("*weights", "*rows", "*codes", "*offsets", "channels", "segments"),
    *("depth", "height", "width"),
)
"""As of the convolution. ``weights`` is the gradient, which the sums are added to; ``height`` and ``width``
count tiles. What a tile reads beyond the image must be 0 in ``gradient`` and finite in ``source``."""


@dataclass(frozen=True)
class GradientTile:
    """What one compiled variant computes at a time.

    Attributes:
        height: positions of a tile along the rows.
        width: positions of a tile in a row.
        stride: input positions from one output position to the next in a row.
        short: whether codes have 16 bits.
    """

    height: int
    width: int
    stride: int = 1
    short: bool = True


@cache
def weight_gradient(tile: GradientTile) -> Kernel:
    """The kernel for tiles of this form. Threads share the output channels."""
    code = Code(ARGUMENTS)
    first, end = code.share(code["channels"])
    high, wide = code["height"], code["width"]
    total = code.mul(code["depth"], code.mul(high, wide))
    with code.loop(number(0), total) as item:
        depth, row, column = code.digits(item, high, wide)
        y, x = code.mul(row, number(tile.height)), code.mul(column, number(tile.width))
        source = code.at(
            code["source"],
            code.mul(depth, code["source_depth"]),
            code.mul(y, code["source_row"]),
            code.mul(x, number(tile.stride * VECTOR_BYTES)),
        )
        gradient = code.at(
            code["gradient"],
            code.mul(depth, code["gradient_depth"]),
            code.mul(y, code["gradient_row"]),
            code.mul(x, number(VECTOR_BYTES)),
        )
        with code.loop(first, end) as channel:
            _channel(code, tile, source, gradient, channel)
    return code.finish()


def _channel(code: Code, tile: GradientTile, source: IRValue, gradient: IRValue, channel: IRValue) -> None:
    base = code.at(gradient, code.mul(channel, code["gradient_channel"]))
    tiles = []
    for row in range(tile.height):
        line = code.at(base, code.mul(code["gradient_row"], number(row)))
        tiles += [code.read_vector(line, number(column * VECTOR_BYTES)) for column in range(tile.width)]
    start = code.read_index(code["rows"], code.mul(channel, code["segments"]))
    stop = code.read_index(code["rows"], code.mul(code.add(channel, number(1)), code["segments"]))
    rest = code.srem(code.sub(stop, start), number(LANES))
    whole = code.sub(stop, rest)
    with code.loop(start, whole, LANES) as index:
        totals = _sums(code, lambda n: _product(code, tile, source, tiles, code.add(index, number(n))))
        place = code.element(code["weights"], index, F32)
        before = code.load(place, typ=VECTOR, align=4)
        code.store(code.fadd(before, totals), place, align=4)
    with code.if_then(code.icmp_signed(">", rest, number(0))):
        last = code.sub(stop, number(1))
        indices = [code.smaller(code.add(whole, number(n)), last) for n in range(LANES)]
        totals = _sums(code, lambda n: _product(code, tile, source, tiles, indices[n]))
        _add_some(code, code.element(code["weights"], whole, F32), totals, rest)


def _product(
    code: Code, tile: GradientTile, source: IRValue, tiles: list[IRValue], index: IRValue
) -> IRValue:
    """The sum of one nonzero's products over a tile, for each lane; by two sums, which need not wait."""
    packed = code.zext(code.read(code["codes"], index, I16 if tile.short else I32), I64)
    pointer = code.element(source, code.read_index(code["offsets"], packed), VECTOR)
    sums: list[IRValue] = []
    for row in range(tile.height):
        line = code.at(pointer, code.mul(code["source_row"], number(row)))
        for column in range(tile.width):
            number_ = row * tile.width + column
            inputs = code.read_vector(line, number(column * tile.stride * VECTOR_BYTES))
            if number_ < 2:
                sums.append(code.fmul(inputs, tiles[number_]))
            else:
                sums[number_ % 2] = code.call_vector("llvm.fma", inputs, tiles[number_], sums[number_ % 2])
    return sums[0] if len(sums) == 1 else code.fadd(*sums)


def _sums(code: Code, product: Callable[[int], IRValue], first: int = 0, step: int = 1) -> IRValue:
    """The vector of the sums of the products' lanes, of as many products as there are lanes.

    Two vectors become one as soon as both are there, so that few are alive at a time.
    """
    if step == LANES:
        return product(first)
    one, other = (_sums(code, product, start, 2 * step) for start in (first, first + step))
    return _folded(code, one, other, step)


def _folded(code: Code, one: IRValue, other: IRValue, half: int) -> IRValue:
    """Two vectors in one: each is in blocks of ``2 * half`` lanes, whose halves are added up."""
    low, high = [], []
    for lane in range(LANES):
        block, place = divmod(lane, 2 * half)
        origin = block * 2 * half + place % half
        origin += LANES if place >= half else 0
        low.append(origin)
        high.append(origin + half)
    return code.fadd(*(code.shuffle_vector(one, other, ir.Constant(INDICES, order)) for order in (low, high)))


def _add_some(code: Code, place: IRValue, totals: IRValue, count: IRValue) -> None:
    """Add the first ``count`` lanes to memory."""
    lanes = ir.Constant(INDICES, list(range(LANES)))
    mask = code.icmp_signed("<", lanes, code.spread(code.trunc(count, I32)))
    read = ir.FunctionType(VECTOR, [POINTER, I32, MASK, VECTOR])
    write = ir.FunctionType(ir.VoidType(), [VECTOR, POINTER, I32, MASK])
    load, store = (
        code.unit.globals.get(name) or ir.Function(code.unit, signature, name)
        for name, signature in (
            (f"llvm.masked.load.v{LANES}f32.p0", read),
            (f"llvm.masked.store.v{LANES}f32.p0", write),
        )
    )
    before = code.call(load, [place, I32(4), mask, ZERO])
    code.call(store, [code.fadd(before, totals), place, I32(4), mask])
