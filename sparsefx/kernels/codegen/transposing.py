"""Moving values whose channels are neighbours in memory outside: 16 channels of 16 lanes at a time.

Gathering or scattering them lane by lane would touch 16 cache lines for every vector; here the lanes'
channels are read or written together, and turned in registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from llvmlite import ir

from sparsefx.kernels.codegen.builder import (
    F32,
    I32,
    INDICES,
    MASK,
    POINTER,
    VECTOR,
    Code,
    IRValue,
    Kernel,
    number,
)
from sparsefx.kernels.codegen.vectors import LANES

_ARGUMENTS = ("*source", "*target", "*places", "*elements", "count", "channels", "lanes_channel")
"""``channels`` are at least 16; ``lanes_channel`` is bytes from one to the next on the side of the lanes."""


@cache
def pack_transposed() -> Kernel:
    """Into lanes; 0 where a lane has no source."""
    code = Code(_ARGUMENTS)
    signature = ir.FunctionType(VECTOR, [POINTER, I32, MASK, VECTOR])
    read = ir.Function(code.unit, signature, f"llvm.masked.load.v{LANES}f32.p0")
    with _pieces(code) as (channel, index):
        rows = []
        for pointer, present in _lanes(code, "source", channel, index):
            rows.append(code.call(read, [pointer, I32(4), present, ir.Constant(VECTOR, None)]))
        target = _place(code, "target", channel, index)
        for row, value in enumerate(_transposed(code, rows)):
            code.write_vector(value, target, code.mul(code["lanes_channel"], number(row)))
    return code.finish()


@cache
def unpack_transposed() -> Kernel:
    """Out of lanes; a lane without a target is left out."""
    code = Code(_ARGUMENTS)
    signature = ir.FunctionType(ir.VoidType(), [VECTOR, POINTER, I32, MASK])
    write = ir.Function(code.unit, signature, f"llvm.masked.store.v{LANES}f32.p0")
    with _pieces(code) as (channel, index):
        source = _place(code, "source", channel, index)
        rows = [
            code.read_vector(source, code.mul(code["lanes_channel"], number(row))) for row in range(LANES)
        ]
        lanes = _lanes(code, "target", channel, index)
        for value, (pointer, present) in zip(_transposed(code, rows), lanes, strict=True):
            code.call(write, [value, pointer, I32(4), present])
    return code.finish()


@contextmanager
def _pieces(code: Code) -> Iterator[tuple[IRValue, IRValue]]:
    """A loop over the first of every 16 channels, the last 16 overlapping, and each place."""
    blocks = code.sdiv(code.add(code["channels"], number(LANES - 1)), number(LANES))
    with code.loop(*code.share(blocks)) as block:
        last = code.sub(code["channels"], number(LANES))
        channel = code.smaller(code.mul(block, number(LANES)), last)
        with code.loop(number(0), code["count"]) as index:
            yield channel, index


def _lanes(code: Code, side: str, channel: IRValue, index: IRValue) -> list[tuple[IRValue, IRValue]]:
    """Where each lane's channels are outside, and whether they are anywhere."""
    addresses = []
    base = code.element(code[side], channel, F32)
    for lane in range(LANES):
        entry = code.add(code.mul(index, number(LANES)), number(lane))
        offset = code.read_index(code["elements"], entry)
        present = code.icmp_signed(">=", offset, number(0))
        addresses.append((code.element(base, offset, F32), code.spread(present)))
    return addresses


def _place(code: Code, side: str, channel: IRValue, index: IRValue) -> IRValue:
    """Where the first of the channels is on the side of the lanes."""
    first = code.mul(channel, code["lanes_channel"])
    return code.at(code[side], first, code.read_index(code["places"], index))


def _transposed(code: Code, rows: Sequence[IRValue]) -> list[IRValue]:
    """Rows and columns exchanged, by blocks of half the size each time."""
    rows, half = list(rows), LANES // 2
    while half:  # is halved
        upper = [lane + LANES - half if lane & half else lane for lane in range(LANES)]
        lower = [lane + LANES if lane & half else lane + half for lane in range(LANES)]
        for row in range(LANES):
            if not row & half:
                pair = rows[row], rows[row + half]
                rows[row] = code.shuffle_vector(*pair, ir.Constant(INDICES, upper))
                rows[row + half] = code.shuffle_vector(*pair, ir.Constant(INDICES, lower))
        half //= 2
    return rows
