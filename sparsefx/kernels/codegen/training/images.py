"""Loops over images in lanes, that kernels of training share.

Each side of a kernel (``source``, ``target`` and so on) is a pointer to its first element, and the bytes
from one channel, plane, row and column to the next: ``source_channel``, ``source_depth``, ``source_row``
and ``source_column``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

from sparsefx.kernels.codegen.builder import F32, VECTOR, Code, IRValue, number

STEPS = ("channel", "depth", "row", "column")
IMAGE = ("channels", "depth", "height", "width")
ZERO = ir.Constant(VECTOR, None)


def side(name: str) -> tuple[str, ...]:
    """The arguments that say where a side's elements are."""
    return (f"*{name}", *(f"{name}_{step}" for step in STEPS))


def at(code: Code, name: str, *place: IRValue) -> IRValue:
    """A pointer to a place of a side: by channel, then plane, row and column, as many as are given."""
    steps = zip(place, STEPS, strict=False)
    return code.at(code[name], *(code.mul(index, code[f"{name}_{step}"]) for index, step in steps))


def of_channel(code: Code, name: str, channel: IRValue) -> IRValue:
    """A channel's number from an array of floats, in every lane."""
    return code.spread(code.read(code[name], channel, F32))


@contextmanager
def places(code: Code, names: Sequence[str]) -> Iterator[tuple[IRValue, dict[str, IRValue]]]:
    """Every place of the images: its channel, and a pointer to it on each side."""
    total = code.mul(code["channels"], code["depth"])
    with code.loop(*code.share(total)) as item, code.loop(number(0), code["height"]) as y:
        channel, depth = code.digits(item, code["depth"])
        rows = {name: at(code, name, channel, depth, y) for name in names}
        with code.loop(number(0), code["width"]) as x:
            yield channel, {n: code.at(row, code.mul(x, code[f"{n}_column"])) for n, row in rows.items()}


@contextmanager
def sums_of_places(
    code: Code, names: Sequence[str], channel: IRValue, count: int
) -> Iterator[tuple[dict[str, IRValue], list[IRValue], list[IRValue], list[IRValue]]]:
    """Every place of one channel, with vectors that are summed up: by rows, then planes, then in all.

    One sum of very many terms would be too large for what is added to it.

    Yields:
        A pointer to the place on each side; the sums of the row so far; a list that the body fills with the
        following ones; and a list that has, after the loop, the sums of the channel.
    """
    zeros = [ZERO] * count
    totals: list[IRValue] = []
    with code.loop_carrying(number(0), code["depth"], zeros) as (z, planes, next_planes):
        with code.loop_carrying(number(0), code["height"], zeros) as (y, lines, next_lines):
            rows = {name: at(code, name, channel, z, y) for name in names}
            with code.loop_carrying(number(0), code["width"], zeros) as (x, sums, following):
                here = {n: code.at(row, code.mul(x, code[f"{n}_column"])) for n, row in rows.items()}
                yield here, sums, following, totals
            next_lines += [code.fadd(line, more) for line, more in zip(lines, sums, strict=True)]
        next_planes += [code.fadd(plane, more) for plane, more in zip(planes, lines, strict=True)]
    totals += planes
