"""Arithmetic element by element: scale and shift by channel, add or multiply by another value, activation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sparsefx.kernels.codegen.builder import F32, Code, IRValue, Kernel, number
from sparsefx.kernels.codegen.functions import FUNCTIONS, OPERATIONS
from sparsefx.kernels.codegen.vectors import VECTOR_BYTES


@dataclass(frozen=True)
class Form:
    """What one compiled variant computes, in this order.

    Attributes:
        scaled: whether the first value is multiplied by ``scale`` and ``shift`` is added, each by channel.
        operation: with the second value: a name in :data:`OPERATIONS`; empty for none.
        function: a name in :data:`FUNCTIONS`; the bounds come last.
    """

    scaled: bool = False
    operation: str = ""
    function: str = "identity"


@cache
def pointwise(form: Form) -> Kernel:
    """The kernel of this form. ``other_column`` is 0 where the second value has one element a channel."""
    second = ("*other", "other_channel", "other_depth", "other_row", "other_column") if form.operation else ()
    code = Code(
        (
            *("*source", "source_channel", "source_depth", "source_row", *second),
            *("*target", "target_channel", "target_depth", "target_row"),
            *(("*scale", "*shift") if form.scaled else ()),
            *("channels", "depth", "height", "width", "low", "high"),
        )
    )
    bounds = code.bits_as_float("low"), code.bits_as_float("high")
    total = code.mul(code["channels"], code["depth"])
    with code.loop(*code.share(total)) as item, code.loop(number(0), code["height"]) as y:
        place = (*code.digits(item, code["depth"]), y)
        rows = {
            side: _row(code, side, place) for side in ("source", "target", *(["other"] if second else []))
        }
        factors = [_of_channel(code, name, place[0]) for name in ("scale", "shift") if form.scaled]
        with code.loop(number(0), code["width"]) as x:
            column = code.mul(x, number(VECTOR_BYTES))
            value = code.read_vector(rows["source"], column)
            if form.scaled:
                value = code.call_vector("llvm.fma", value, *factors)
            if form.operation:
                operand = code.read_vector(rows["other"], code.mul(x, code["other_column"]))
                value = OPERATIONS[form.operation](code, value, operand)
            value = code.clamp(FUNCTIONS[form.function](code, value), *bounds)
            code.write_vector(value, rows["target"], column)
    return code.finish()


def _row(code: Code, side: str, place: tuple[IRValue, ...]) -> IRValue:
    steps = zip(place, ("channel", "depth", "row"), strict=True)
    return code.at(code[side], *(code.mul(index, code[f"{side}_{step}"]) for index, step in steps))


def _of_channel(code: Code, name: str, channel: IRValue) -> IRValue:
    return code.spread(code.read(code[name], channel, F32))
