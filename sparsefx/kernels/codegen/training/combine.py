"""What stands between convolutions, forward: sums of normalised values, activation, pooling; its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from llvmlite import ir

from sparsefx.kernels.codegen.builder import MASK, VECTOR, Code, IRValue, Kernel, number
from sparsefx.kernels.codegen.pooling import larger
from sparsefx.kernels.codegen.training.activations import activated, before_activation
from sparsefx.kernels.codegen.training.images import IMAGE, ZERO, at, of_channel, places, side
from sparsefx.kernels.codegen.vectors import LANES
from sparsefx.kernels.ir.activation import NO_ACTIVATION, Activation


@dataclass(frozen=True)
class Sum:
    """What one compiled variant computes.

    Attributes:
        scaled: of each summand, whether it is multiplied by its ``scale`` and has its ``shift`` added.
        activation: of the sum.
        noisy: whether the result is multiplied by ``noise``.
    """

    scaled: tuple[bool, ...]
    activation: Activation = NO_ACTIVATION
    noisy: bool = False


@cache
def combine(form: Sum) -> Kernel:
    """The sum of up to two values, each scaled and shifted by channel; zeros where there is none."""
    names = [f"source_{index}" for index in range(len(form.scaled))]
    noise = ["noise"] if form.noisy else []
    code = Code(
        (
            *(argument for name in (*names, *noise) for argument in side(name)),
            *(f"*{word}_{n}" for n, has in enumerate(form.scaled) if has for word in ("scale", "shift")),
            *side("target"),
            *IMAGE,
        )
    )
    with places(code, [*names, *noise, "target"]) as (channel, here):
        total = None
        for index, name in enumerate(names):
            value = code.read_vector(here[name])
            if form.scaled[index]:
                scale, shift = (of_channel(code, f"{word}_{index}", channel) for word in ("scale", "shift"))
                value = code.call_vector("llvm.fma", value, scale, shift)
            total = value if total is None else code.fadd(total, value)
        result = ZERO if total is None else total
        result = activated(code, form.activation, result)
        if form.noisy:
            result = code.fmul(result, code.read_vector(here["noise"]))
        code.write_vector(result, here["target"])
    return code.finish()


@dataclass(frozen=True)
class Pooling:
    """What one compiled variant pools: ``activation(scale * source + shift)``.

    Attributes:
        largest: the largest of each window; or else the sum times ``factor``.
        scaled: whether there are ``scale`` and ``shift`` by channel.
        activation: what is applied first.
    """

    largest: bool
    scaled: bool
    activation: Activation = NO_ACTIVATION


_WINDOWS = tuple(
    f"{axis}_{what}" for axis in ("depth", "height", "width") for what in ("size", "window", "step", "pad")
)
"""By axis: the source's size, and of the windows the size, the distance, and the zeros before the first."""


@cache
def pooled(form: Pooling) -> Kernel:
    """The pooled values; windows end where the image does."""
    code = _windows_code(form, "target")
    with _windows_of_channels(code) as (channel, place):
        bounds = _bounds(code, place)
        factors = _factors(code, form, channel)
        result = _pooled(code, form, channel, bounds, factors)
        if not form.largest:
            result = code.fmul(result, code.bits_as_float("factor"))
        code.write_vector(result, at(code, "target", channel, *place))
    return code.finish()


@cache
def unpooled(form: Pooling) -> Kernel:
    """Add each window's gradient to that of the element it came from, the first of the largest; or to all.

    ``source`` and ``target`` are of the windows' source, of equal size; ``gradient`` is of the pooled values,
    and that of ``target`` is before the activation.
    """
    code = _windows_code(form, "target", "gradient")
    with _windows_of_channels(code) as (channel, place):
        bounds = _bounds(code, place)
        factors = _factors(code, form, channel)
        gradient = code.read_vector(at(code, "gradient", channel, *place))
        if form.largest:
            largest = _pooled(code, form, channel, bounds, factors)
            _to_largest(code, form, channel, bounds, factors, largest, gradient)
        else:
            gradient = code.fmul(gradient, code.bits_as_float("factor"))
            with _taps(code, bounds, []) as (tap, _, _):
                share = gradient
                if form.activation != NO_ACTIVATION:
                    x = _summed(code, form, channel, tap, factors)
                    share = before_activation(code, form.activation, x, gradient)
                target = at(code, "target", channel, *tap)
                code.write_vector(code.fadd(code.read_vector(target), share), target)
    return code.finish()


def _windows_code(form: Pooling, *others: str) -> Code:
    return Code(
        (
            *side("source"),
            *(argument for name in others for argument in side(name)),
            *(("*scale", "*shift") if form.scaled else ()),
            *IMAGE,
            *_WINDOWS,
            "factor",
        )
    )


@contextmanager
def _windows_of_channels(code: Code) -> Iterator[tuple[IRValue, tuple[IRValue, ...]]]:
    """Every window; all of a channel by one thread, since gradients of several may meet."""
    with (
        code.loop(*code.share(code["channels"])) as channel,
        code.loop(number(0), code["depth"]) as z,
        code.loop(number(0), code["height"]) as y,
        code.loop(number(0), code["width"]) as x,
    ):
        yield channel, (z, y, x)


def _factors(code: Code, form: Pooling, channel: IRValue) -> list[IRValue]:
    return [of_channel(code, name, channel) for name in ("scale", "shift") if form.scaled]


def _bounds(code: Code, place: tuple[IRValue, ...]) -> list[tuple[IRValue, IRValue]]:
    """First and last element, exclusive, of a window along each axis, inside of the image."""
    result = []
    for axis, index in zip(("depth", "height", "width"), place, strict=True):
        begin = code.sub(code.mul(index, code[f"{axis}_step"]), code[f"{axis}_pad"])
        end = code.smaller(code.add(begin, code[f"{axis}_window"]), code[f"{axis}_size"])
        first = code.select(code.icmp_signed("<", begin, number(0)), number(0), begin)
        result.append((first, end))
    return result


@contextmanager
def _taps(
    code: Code, bounds: list[tuple[IRValue, IRValue]], initial: list[IRValue]
) -> Iterator[tuple[tuple[IRValue, ...], list[IRValue], list[IRValue]]]:
    """Every element of a window, in order, with values that each passes on to the next."""
    depth, height, width = bounds
    with code.loop_carrying(*depth, initial) as (z, outer, next_outer):
        with code.loop_carrying(*height, outer) as (y, middle, next_middle):
            with code.loop_carrying(*width, middle) as (x, inner, next_inner):
                yield (z, y, x), inner, next_inner
            next_middle += inner
        next_outer += middle
    initial[:] = outer


def _summed(
    code: Code, form: Pooling, channel: IRValue, tap: tuple[IRValue, ...], factors: list[IRValue]
) -> IRValue:
    """An element before the activation."""
    value = code.read_vector(at(code, "source", channel, *tap))
    return code.call_vector("llvm.fma", value, *factors) if form.scaled else value


def _pooled(
    code: Code,
    form: Pooling,
    channel: IRValue,
    bounds: list[tuple[IRValue, IRValue]],
    factors: list[IRValue],
) -> IRValue:
    lowest = ir.Constant(VECTOR, [float("-inf")] * LANES)
    results = [lowest if form.largest else ZERO]
    with _taps(code, bounds, results) as (tap, (so_far,), following):
        value = activated(code, form.activation, _summed(code, form, channel, tap, factors))
        following.append(larger(code, so_far, value) if form.largest else code.fadd(so_far, value))
    return results[0]


def _to_largest(
    code: Code,
    form: Pooling,
    channel: IRValue,
    bounds: list[tuple[IRValue, IRValue]],
    factors: list[IRValue],
    largest: IRValue,
    gradient: IRValue,
) -> None:
    """Add the gradient where the largest first is."""
    waiting = ir.Constant(MASK, [1] * LANES)
    with _taps(code, bounds, [waiting]) as (tap, (not_yet,), following):
        x = _summed(code, form, channel, tap, factors)
        equal = code.fcmp_ordered("==", activated(code, form.activation, x), largest)
        chosen = code.and_(not_yet, equal)
        target = at(code, "target", channel, *tap)
        share = before_activation(code, form.activation, x, gradient)
        more = code.fadd(code.read_vector(target), code.select(chosen, share, ZERO))
        code.write_vector(more, target)
        following.append(code.and_(not_yet, code.not_(equal)))
