"""The backward pass between convolutions, and the sums over a batch that normalisation needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from sparsefx.kernels.codegen.builder import F32, Code, IRValue, Kernel, number
from sparsefx.kernels.codegen.training.activations import before_activation
from sparsefx.kernels.codegen.training.images import IMAGE, of_channel, places, side, sums_of_places
from sparsefx.kernels.codegen.vectors import VECTOR_BYTES
from sparsefx.kernels.ir.activation import NO_ACTIVATION, Activation


@cache
def moments(masked: bool) -> Kernel:
    """Add up ``source - origin`` and its square: ``sums`` is ``[channels][2][lanes]``.

    A value near the mean as ``origin``, by channel (lane 0 of the first place of ``*origin``), keeps digits
    that squares of large values would lose.

    Args:
        masked: multiply by the vector ``lanes``, which is 0 in lanes that hold no image.
    """
    code = Code(
        (*side("source"), "*origin", "origin_channel", "*sums", *(("*lanes",) if masked else ()), *IMAGE)
    )
    lanes = code.read_vector(code["lanes"]) if masked else None
    with code.loop(*code.share(code["channels"])) as channel:
        first = code.at(code["origin"], code.mul(channel, code["origin_channel"]))
        origin = of_channel_at(code, first)
        with sums_of_places(code, ["source"], channel, 2) as (here, sums, following, totals):
            value = code.fsub(code.read_vector(here["source"]), origin)
            value = code.fmul(value, lanes) if masked else value
            following += [code.fadd(sums[0], value), code.call_vector("llvm.fma", value, value, sums[1])]
        _add_to_sums(code, channel, totals)
    return code.finish()


def of_channel_at(code: Code, pointer: IRValue) -> IRValue:
    """The float at an address, in every lane."""
    return code.spread(code.load(pointer, typ=F32))


@dataclass(frozen=True)
class Derivative:
    """What one compiled variant does with a gradient.

    Attributes:
        activation: through which the gradient goes.
        of: what it was applied to: ``scale * value + shift``, as after normalisation; ``value`` itself; or
            what ``output`` tells as well.
        normalised: whether ``value`` was normalised.
        masked: as of :func:`moments`.
        added: whether the result is added to what the target holds.
        noisy: whether the activation's value was multiplied by ``noise``.
    """

    activation: Activation = NO_ACTIVATION
    of: Literal["", "scaled", "value", "output"] = ""
    normalised: bool = False
    masked: bool = False
    added: bool = False
    noisy: bool = False

    @property
    def sides(self) -> list[str]:
        """What is read at each place."""
        reads_value = self.normalised or self.of in ("scaled", "value")
        output = ["output"] if self.of == "output" else []
        noise = ["noise"] if self.noisy else []
        return ["gradient", *(["value"] if reads_value else []), *output, *noise]

    @property
    def factors(self) -> tuple[str, ...]:
        """Arrays of floats by channel that it reads."""
        return ("scale", "shift") if self.of == "scaled" else ()


@cache
def gradient_sums(form: Derivative) -> Kernel:
    """Add up the gradient, and its product with ``value - mean``: ``sums`` is ``[channels][2][lanes]``."""
    means = ("mean",) if form.normalised else ()
    code = _derivative_code(form, (*form.factors, *means), "*sums")
    with code.loop(*code.share(code["channels"])) as channel:
        factors = _factors(code, (*form.factors, *means), channel)
        count = 2 if form.normalised else 1
        with sums_of_places(code, form.sides, channel, count) as (here, sums, following, totals):
            gradient, value = _gradient(code, form, here, factors)
            following.append(code.fadd(sums[0], gradient))
            if form.normalised:
                apart = code.fsub(value, factors["mean"])
                following.append(code.call_vector("llvm.fma", gradient, apart, sums[1]))
        _add_to_sums(code, channel, totals)
    return code.finish()


@cache
def derivative(form: Derivative) -> Kernel:
    """The gradient before normalisation: ``by_gradient * gradient + by_value * value + constant``."""
    names = (*form.factors, *(("by_gradient", "by_value", "constant") if form.normalised else ()))
    code = _derivative_code(form, names, *side("target"), *(("*lanes",) if form.masked else ()))
    lanes = code.read_vector(code["lanes"]) if form.masked else None
    with places(code, [*form.sides, "target"]) as (channel, here):
        factors = _factors(code, names, channel)
        result, value = _gradient(code, form, here, factors)
        if form.normalised:
            rest = code.call_vector("llvm.fma", value, factors["by_value"], factors["constant"])
            result = code.call_vector("llvm.fma", result, factors["by_gradient"], rest)
        if form.masked:
            result = code.fmul(result, lanes)
        if form.added:
            result = code.fadd(result, code.read_vector(here["target"]))
        code.write_vector(result, here["target"])
    return code.finish()


def _derivative_code(form: Derivative, factors: tuple[str, ...], *more: str) -> Code:
    sides = (argument for name in form.sides for argument in side(name))
    return Code((*sides, *(f"*{name}" for name in factors), *more, *IMAGE))


def _factors(code: Code, names: tuple[str, ...], channel: IRValue) -> dict[str, IRValue]:
    return {name: of_channel(code, name, channel) for name in names}


def _gradient(
    code: Code, form: Derivative, here: dict[str, IRValue], factors: dict[str, IRValue]
) -> tuple[IRValue, IRValue]:
    """The gradient before the activation, and the value that it belongs to, if that is read."""
    gradient = code.read_vector(here["gradient"])
    if form.noisy:
        gradient = code.fmul(gradient, code.read_vector(here["noise"]))
    value = code.read_vector(here["value"]) if "value" in here else None
    x = value
    if form.of == "scaled":
        x = code.call_vector("llvm.fma", value, factors["scale"], factors["shift"])
    elif form.of == "output":
        x = code.read_vector(here["output"])
    return before_activation(code, form.activation, x, gradient) if form.of else gradient, value


def _add_to_sums(code: Code, channel: IRValue, totals: list[IRValue]) -> None:
    place = code.at(code["sums"], code.mul(channel, number(2 * VECTOR_BYTES)))
    for index, total in enumerate(totals):
        offset = number(index * VECTOR_BYTES)
        code.write_vector(code.fadd(code.read_vector(place, offset), total), place, offset)
