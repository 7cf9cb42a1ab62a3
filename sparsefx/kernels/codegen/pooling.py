"""Pooling: the largest or the mean of a window, and the mean of a whole image."""

from __future__ import annotations

from functools import cache

from llvmlite import ir

from sparsefx.kernels.codegen.builder import I64, INDICES, VECTOR, Code, IRValue, Kernel, number
from sparsefx.kernels.codegen.vectors import LANES

_IMAGE = ("channels", "depth", "height", "width")


@cache
def pool(largest: bool) -> Kernel:
    """The largest of a window's values, or their sum times ``scale``; NaN in a window gives NaN.

    ``taps`` has the byte offset of each of the window's values; ``across`` leads to the next window in a row.
    """
    code = Code(
        (
            *("*source", "*target", "*taps", "window", "scale", *_IMAGE, "across"),
            *("source_channel", "source_depth", "source_row"),
            *("target_channel", "target_depth", "target_row"),
        )
    )
    scale = code.bits_as_float("scale")
    total = code.mul(code["channels"], code["depth"])
    with code.loop(*code.share(total)) as item, code.loop(number(0), code["height"]) as y:
        channel, depth = code.digits(item, code["depth"])
        source, target = (
            code.at(
                code[side],
                code.mul(channel, code[f"{side}_channel"]),
                code.mul(depth, code[f"{side}_depth"]),
                code.mul(y, code[f"{side}_row"]),
            )
            for side in ("source", "target")
        )
        with code.loop(number(0), code["width"]) as x:
            window = code.at(source, code.mul(x, code["across"]))
            first = code.read_vector(window, code.read(code["taps"], number(0), I64))
            with code.loop_carrying(number(1), code["window"], [first]) as (tap, (so_far,), following):
                value = code.read_vector(window, code.read(code["taps"], tap, I64))
                following.append(larger(code, so_far, value) if largest else code.fadd(so_far, value))
            result = so_far if largest else code.fmul(so_far, scale)
            code.write_vector(result, target, code.mul(x, number(4 * LANES)))
    return code.finish()


@cache
def mean(together: int) -> Kernel:
    """The mean of each channel's whole image.

    Args:
        together: so many neighbouring lanes, a power of 2, hold parts of one image; each gets the whole mean.
    """
    code = Code(
        (
            "*source",
            "*target",
            "scale",
            *_IMAGE,
            "source_channel",
            "source_depth",
            "source_row",
            "target_channel",
        )
    )
    scale = code.bits_as_float("scale")
    with code.loop(*code.share(code["channels"])) as channel:
        image = code.at(code["source"], code.mul(channel, code["source_channel"]))
        total = _sum(code, image)
        distance = 1
        while distance < together:
            total = code.fadd(total, _exchange(code, total, distance))
            distance *= 2
        code.write_vector(code.fmul(total, scale), code["target"], code.mul(channel, code["target_channel"]))
    return code.finish()


def _sum(code: Code, image: IRValue) -> IRValue:
    """By rows, then planes: one sum of very many is too large for what is added to it."""
    zero = ir.Constant(VECTOR, None)
    with code.loop_carrying(number(0), code["depth"], [zero]) as (z, (outer,), after_depth):
        plane = code.at(image, code.mul(z, code["source_depth"]))
        with code.loop_carrying(number(0), code["height"], [zero]) as (y, (middle,), after_row):
            row = code.at(plane, code.mul(y, code["source_row"]))
            with code.loop_carrying(number(0), code["width"], [zero]) as (x, (inner,), after_place):
                after_place.append(code.fadd(inner, code.read_vector(row, code.mul(x, number(4 * LANES)))))
            after_row.append(code.fadd(middle, inner))
        after_depth.append(code.fadd(outer, middle))
    return outer


def _exchange(code: Code, value: IRValue, distance: int) -> IRValue:
    order = ir.Constant(INDICES, [lane ^ distance for lane in range(LANES)])
    return code.shuffle_vector(value, ir.Constant(VECTOR, ir.Undefined), order)


def larger(code: Code, largest: IRValue, value: IRValue) -> IRValue:
    """``value`` where it is larger or NaN; NaN stays."""
    change = code.or_(code.fcmp_ordered(">", value, largest), code.fcmp_unordered("uno", value, value))
    return code.select(change, value, largest)
