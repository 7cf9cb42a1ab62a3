"""Activations of training: their values, and their slopes, by which gradients are multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable

from sparsefx.kernels.codegen.builder import Code, IRValue
from sparsefx.kernels.codegen.functions import (
    FUNCTIONS,
    constant,
    exponential,
    mish_factor,
    normal,
    sigmoid,
    tanh,
)
from sparsefx.kernels.codegen.training.images import ZERO
from sparsefx.kernels.ir.activation import Activation

_ONE = constant(1.0)


def activated(code: Code, form: Activation, x: IRValue) -> IRValue:
    """The activation's value; NaN stays."""
    result = FUNCTIONS[form.function](code, x)
    if form.below != 1:
        negative = code.fmul(x, constant(form.below)) if form.below else ZERO
        result = code.select(code.fcmp_ordered("<", x, ZERO), negative, result)
    if form.high != math.inf:
        high = constant(form.high)
        result = code.select(code.fcmp_ordered(">", result, high), high, result)
    return result


def before_activation(code: Code, form: Activation, x: IRValue, gradient: IRValue) -> IRValue:
    """The gradient of ``x``, from that of the activation's value."""
    result = gradient
    if form.function != "identity":
        result = code.fmul(gradient, _SLOPES[form.function](code, x))
    if form.below != 1:
        negative = code.fmul(gradient, constant(form.below)) if form.below else ZERO
        result = code.select(code.fcmp_ordered(">", x, ZERO), result, negative)
    if form.high != math.inf:
        result = code.select(code.fcmp_ordered("<", x, constant(form.high)), result, ZERO)
    return result


def _sigmoid(code: Code, x: IRValue) -> IRValue:
    value = sigmoid(code, x)
    return code.fmul(value, code.fsub(_ONE, value))


def _tanh(code: Code, x: IRValue) -> IRValue:
    return _rest_of_square(code, tanh(code, x))


def _silu(code: Code, x: IRValue) -> IRValue:
    value = sigmoid(code, x)
    return code.fmul(value, code.call_vector("llvm.fma", x, code.fsub(_ONE, value), _ONE))


def _mish(code: Code, x: IRValue) -> IRValue:
    """Of x t, where t is the hyperbolic tangent of ln(1 + exp(x)), whose slope is the sigmoid."""
    t = mish_factor(code, x)
    inner = code.fmul(_rest_of_square(code, t), sigmoid(code, x))
    return code.call_vector("llvm.fma", x, inner, t)


def _gelu(code: Code, x: IRValue) -> IRValue:
    density = exponential(code, code.fmul(code.fmul(x, x), constant(-0.5)))
    density = code.fmul(density, constant(1 / math.sqrt(2 * math.pi)))
    return code.call_vector("llvm.fma", x, density, normal(code, x))


def _gelu_tanh(code: Code, x: IRValue) -> IRValue:
    """Of x (1 + t) / 2, where t is the hyperbolic tangent of s (x + c x^3)."""
    factor, square = math.sqrt(2 / math.pi), code.fmul(x, x)
    inner = code.call_vector("llvm.fma", square, constant(0.044715), _ONE)
    t = tanh(code, code.fmul(code.fmul(x, inner), constant(factor)))
    slope = code.call_vector("llvm.fma", square, constant(3 * 0.044715 * factor), constant(factor))
    more = code.fmul(code.fmul(x, _rest_of_square(code, t)), slope)
    return code.fmul(constant(0.5), code.fadd(code.fadd(_ONE, t), more))


def _elu(code: Code, x: IRValue) -> IRValue:
    return code.select(code.fcmp_ordered("<", x, ZERO), exponential(code, x), _ONE)


def _hardsigmoid(code: Code, x: IRValue) -> IRValue:
    inside = code.fcmp_ordered("<", code.call_vector("llvm.fabs", x), constant(3.0))
    return code.select(inside, constant(1 / 6), ZERO)


def _hardswish(code: Code, x: IRValue) -> IRValue:
    line = code.call_vector("llvm.fma", x, constant(1 / 3), constant(0.5))
    line = code.select(code.fcmp_ordered("<", x, constant(3.0)), line, _ONE)
    return code.select(code.fcmp_ordered(">", x, constant(-3.0)), line, ZERO)


def _square(code: Code, x: IRValue) -> IRValue:
    return code.fmul(x, constant(2.0))


def _cube(code: Code, x: IRValue) -> IRValue:
    return code.fmul(code.fmul(x, x), constant(3.0))


def _rest_of_square(code: Code, t: IRValue) -> IRValue:
    return code.fsub(_ONE, code.fmul(t, t))


_SLOPES: dict[str, Callable[[Code, IRValue], IRValue]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "silu": _silu,
    "mish": _mish,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "elu": _elu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "square": _square,
    "cube": _cube,
}
