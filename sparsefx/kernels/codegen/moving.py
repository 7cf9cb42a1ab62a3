"""Moving values: into the layout of lanes, from one such layout to another, to its borders, out of it.

Each kernel goes over channels and, for each, over a table of places, which are byte offsets of vectors;
``elements`` has for every lane of every place an offset in floats on the other side, or a negative one for
none.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir

from sparsefx.kernels.codegen.builder import (
    F32,
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
from sparsefx.kernels.codegen.vectors import LANES

_POINTERS = ir.VectorType(POINTER, LANES)


@cache
def gather() -> Kernel:
    """Lanes from anywhere; ``fill`` (the bits of a float) where a lane has no source."""
    code = Code(
        (
            *("*source", "*target", "*places", "*elements", "count", "channels"),
            *("source_channel", "target_channel", "fill"),
        )
    )
    fill = code.bits_as_float("fill")
    signature = ir.FunctionType(VECTOR, [_POINTERS, I32, MASK, VECTOR])
    read = ir.Function(code.unit, signature, f"llvm.masked.gather.v{LANES}f32.v{LANES}p0")
    with code.loop(*code.share(code["channels"])) as channel:
        source = code.at(code["source"], code.mul(channel, code["source_channel"]))
        target = code.at(code["target"], code.mul(channel, code["target_channel"]))
        with code.loop(number(0), code["count"]) as index:
            pointers, present = _addresses(code, source, index)
            value = code.call(read, [pointers, I32(4), present, fill])
            code.write_vector(value, target, code.read_index(code["places"], index))
    return code.finish()


@cache
def scatter() -> Kernel:
    """Lanes to anywhere; a lane without a target is left out."""
    code = Code(
        (
            *("*source", "*target", "*places", "*elements", "count", "channels"),
            *("source_channel", "target_channel"),
        )
    )
    signature = ir.FunctionType(ir.VoidType(), [VECTOR, _POINTERS, I32, MASK])
    write = ir.Function(code.unit, signature, f"llvm.masked.scatter.v{LANES}f32.v{LANES}p0")
    with code.loop(*code.share(code["channels"])) as channel:
        source = code.at(code["source"], code.mul(channel, code["source_channel"]))
        target = code.at(code["target"], code.mul(channel, code["target_channel"]))
        with code.loop(number(0), code["count"]) as index:
            pointers, present = _addresses(code, target, index)
            value = code.read_vector(source, code.read_index(code["places"], index))
            code.call(write, [value, pointers, I32(4), present])
    return code.finish()


@cache
def exchange(patterns: tuple[tuple[int, ...], ...]) -> Kernel:
    """Lanes of a value to other lanes of the same; 0 where a lane has no source.

    Args:
        patterns: for each lane the one that it gets, or -1. Each pattern has its own places, which end at
            the argument ``end_0``, ``end_1`` and so on; ``origins`` are the places they come from.
    """
    ends = [f"end_{index}" for index in range(len(patterns))]
    code = Code(("*target", "*places", "*origins", *ends, "channels", "target_channel"))
    zeros = ir.Constant(VECTOR, None)
    with code.loop(*code.share(code["channels"])) as channel:
        target = code.at(code["target"], code.mul(channel, code["target_channel"]))
        start = number(0)
        for end, pattern in zip(ends, patterns, strict=True):
            order = [LANES + lane if origin < 0 else origin for lane, origin in enumerate(pattern)]
            with code.loop(start, code[end]) as index:
                value = code.read_vector(target, code.read_index(code["origins"], index))
                value = code.shuffle_vector(value, zeros, ir.Constant(INDICES, order))
                code.write_vector(value, target, code.read_index(code["places"], index))
            start = code[end]
    return code.finish()


def _addresses(code: Code, base: IRValue, index: IRValue) -> tuple[IRValue, IRValue]:
    """Where the lanes of a place are on the other side, and which of them are anywhere."""
    table = code.element(code["elements"], code.mul(index, number(LANES)), I32)
    offsets = code.load(table, typ=INDICES, align=4)
    wide = code.sext(offsets, ir.VectorType(I64, LANES))
    pointers = code.gep(base, [wide], source_etype=F32)
    pointers.type = _POINTERS  # llvmlite takes a pointer moved by vectors for one pointer
    return pointers, code.icmp_signed(">=", offsets, ir.Constant(INDICES, None))
