"""What normalisation makes of a batch's sums, channel by channel, in float64."""

from __future__ import annotations

from functools import cache

from llvmlite import ir

from sparsefx.kernels.codegen.builder import F32, Code, IRValue, Kernel, number
from sparsefx.kernels.codegen.vectors import LANES, VECTOR_BYTES

F64 = ir.DoubleType()


@cache
def normalise(training: bool, affine: bool, tracked: bool) -> Kernel:
    """Each channel's ``mean``, the ``inverse`` of its deviation, and the ``scale`` and ``shift`` from both.

    As of BatchNorm (Ioffe & Szegedy 2015). ``momentum`` is one float in memory, ``eps`` the bits of one.

    Args:
        training: by the batch's moments, as :func:`.derivative.moments` sums them, of ``count`` values a
            channel; or else by the running statistics.
        affine: whether there are ``weight`` and ``bias``.
        tracked: whether running statistics are updated, or read.
    """
    code = Code(
        (
            *(("*sums", "*origin", "origin_channel", "count") if training else ()),
            *(("*weight", "*bias") if affine else ()),
            *(("*running_mean", "*running_var") if tracked else ()),
            *(("*momentum",) if training and tracked else ()),
            *("*mean", "*inverse", "*scale", "*shift", "eps", "channels"),
        )
    )
    eps = _wide(code, code.bitcast(code.trunc(code["eps"], ir.IntType(32)), F32))
    with code.loop(*code.share(code["channels"])) as channel:
        if training:
            mean, variance = _moments(code, channel)
            if tracked:
                _update_running(code, channel, mean, variance)
        else:
            mean, variance = (
                _wide(code, code.read(code[f"running_{n}"], channel, F32)) for n in ("mean", "var")
            )
        inverse = code.fdiv(F64(1.0), _root(code, code.fadd(variance, eps)))
        weight = _wide(code, code.read(code["weight"], channel, F32)) if affine else F64(1.0)
        bias = _wide(code, code.read(code["bias"], channel, F32)) if affine else F64(0.0)
        scale = code.fmul(weight, inverse)
        shift = code.fsub(bias, code.fmul(mean, scale))
        for name, value in (("mean", mean), ("inverse", inverse), ("scale", scale), ("shift", shift)):
            _store(code, name, channel, value)
    return code.finish()


def _moments(code: Code, channel: IRValue) -> tuple[IRValue, IRValue]:
    """The mean, and the variance with ``count`` in the denominator."""
    count = code.sitofp(code["count"], F64)
    first, second = (code.fdiv(total, count) for total in _sums(code, channel, 2))
    origin = code.load(code.at(code["origin"], code.mul(channel, code["origin_channel"])), typ=F32)
    variance = code.fsub(second, code.fmul(first, first))
    negative = code.fcmp_ordered("<", variance, F64(0.0))
    return code.fadd(first, _wide(code, origin)), code.select(negative, F64(0.0), variance)


def _update_running(code: Code, channel: IRValue, mean: IRValue, variance: IRValue) -> None:
    """As torch does: the running variance takes in that with ``count - 1`` in the denominator."""
    count = code.sitofp(code["count"], F64)
    unbiased = code.fmul(variance, code.fdiv(count, code.fsub(count, F64(1.0))))
    momentum = _wide(code, code.load(code["momentum"], typ=F32))
    for name, new in (("running_mean", mean), ("running_var", unbiased)):
        old = _wide(code, code.read(code[name], channel, F32))
        _store(code, name, channel, code.fadd(old, code.fmul(momentum, code.fsub(new, old))))


@cache
def normalise_backward(training: bool, affine: bool) -> Kernel:
    """Gradients of weight and bias, and the three factors of each channel's gradient.

    From sums of the gradient ``g`` and of ``g (value - mean)``. In training, with n values a channel, the
    gradient is ``scale (g - sum g / n - (value - mean) inverse^2 sum(g (value - mean)) / n)``; else
    ``scale g``.
    """
    code = Code(
        (
            *("*sums", "count", "*mean", "*inverse", "*scale"),
            *(("*weight_gradient", "*bias_gradient") if affine else ()),
            *("*by_gradient", "*by_value", "*constant", "channels"),
        )
    )
    with code.loop(*code.share(code["channels"])) as channel:
        total, product = _sums(code, channel, 2)
        mean, inverse, scale = (
            _wide(code, code.read(code[name], channel, F32)) for name in ("mean", "inverse", "scale")
        )
        by_value = constant = F64(0.0)
        if training:
            part = code.fdiv(scale, code.sitofp(code["count"], F64))
            by_value = code.fneg(code.fmul(code.fmul(part, product), code.fmul(inverse, inverse)))
            constant = code.fsub(code.fneg(code.fmul(part, total)), code.fmul(by_value, mean))
        if affine:
            _store(code, "weight_gradient", channel, code.fmul(product, inverse))
            _store(code, "bias_gradient", channel, total)
        for name, value in (("by_gradient", scale), ("by_value", by_value), ("constant", constant)):
            _store(code, name, channel, value)
    return code.finish()


@cache
def sum_of_lanes() -> Kernel:
    """The first of each channel's two sums, over all lanes."""
    code = Code(("*sums", "*target", "channels"))
    with code.loop(*code.share(code["channels"])) as channel:
        (total,) = _sums(code, channel, 1)
        _store(code, "target", channel, total)
    return code.finish()


def _sums(code: Code, channel: IRValue, count: int) -> list[IRValue]:
    place = code.at(code["sums"], code.mul(channel, number(2 * VECTOR_BYTES)))
    totals = []
    for index in range(count):
        vector = code.read_vector(place, number(index * VECTOR_BYTES))
        total = F64(0.0)
        for lane in range(LANES):
            total = code.fadd(total, _wide(code, code.extract_element(vector, ir.IntType(32)(lane))))
        totals.append(total)
    return totals


def _wide(code: Code, value: IRValue) -> IRValue:
    return code.fpext(value, F64)


def _root(code: Code, value: IRValue) -> IRValue:
    name = "llvm.sqrt.f64"
    function = code.unit.globals.get(name) or ir.Function(code.unit, ir.FunctionType(F64, [F64]), name)
    return code.call(function, [value])


def _store(code: Code, name: str, channel: IRValue, value: IRValue) -> None:
    code.store(code.fptrunc(value, F32), code.element(code[name], channel, F32))
