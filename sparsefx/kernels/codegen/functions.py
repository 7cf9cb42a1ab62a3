"""Activations on vectors, from arithmetic alone; within a few units in the last place of torch's."""

from __future__ import annotations

import math
from collections.abc import Callable

from llvmlite import ir

from sparsefx.kernels.codegen.builder import INDICES, VECTOR, Code, IRValue
from sparsefx.kernels.ir.function_names import FUNCTION_NAMES, OPERATION_NAMES


def constant(value: float) -> IRValue:
    """The same number in every lane."""
    return ir.Constant(VECTOR, [value] * VECTOR.count)


def exponential(code: Code, x: IRValue) -> IRValue:
    """E to the power of x: 2 to a whole power, by the exponent's bits, times a polynomial of the rest."""
    x = code.clamp(x, constant(-87.0), constant(88.0))
    whole = code.call_vector("llvm.rint", code.fmul(x, constant(math.log2(math.e))))
    # ln 2 in two parts, so that the rest keeps all its bits
    rest = code.call_vector("llvm.fma", whole, constant(-0.693359375), x)
    rest = code.call_vector("llvm.fma", whole, constant(2.12194440054690583e-4), rest)
    result = constant(1 / math.factorial(7))
    for power in range(6, -1, -1):
        result = code.call_vector("llvm.fma", result, rest, constant(1 / math.factorial(power)))
    exponent = code.shl(code.fptosi(whole, INDICES), ir.Constant(INDICES, [23] * INDICES.count))
    scaled = code.bitcast(code.add(code.bitcast(result, INDICES), exponent), VECTOR)
    return code.select(code.fcmp_unordered("uno", x, x), x, scaled)


def sigmoid(code: Code, x: IRValue) -> IRValue:
    """1 / (1 + exp(-x)); 0 where the exponential would leave the range of floats."""
    value = code.fdiv(constant(1.0), code.fadd(constant(1.0), exponential(code, code.fneg(x))))
    return code.select(code.fcmp_ordered("<", x, constant(-88.0)), constant(0.0), value)


def tanh(code: Code, x: IRValue) -> IRValue:
    """The hyperbolic tangent; near 0 by its series, which the quotient would lose."""
    square = code.fmul(x, x)
    near = constant(-17 / 315)
    for coefficient in (2 / 15, -1 / 3, 1.0):
        near = code.call_vector("llvm.fma", near, square, constant(coefficient))
    twice = exponential(code, code.fmul(x, constant(2.0)))
    far = code.fsub(constant(1.0), code.fdiv(constant(2.0), code.fadd(twice, constant(1.0))))
    return code.select(code.fcmp_ordered("<", square, constant(0.01)), code.fmul(near, x), far)


def normal(code: Code, x: IRValue) -> IRValue:
    """The normal distribution function: Abramowitz and Stegun 26.2.17, to 7.5e-8."""
    absolute = code.call_vector("llvm.fabs", x)
    t = code.fdiv(constant(1.0), code.call_vector("llvm.fma", absolute, constant(0.2316419), constant(1.0)))
    series = constant(1.330274429)
    for coefficient in (-1.821255978, 1.781477937, -0.356563782, 0.319381530):
        series = code.call_vector("llvm.fma", series, t, constant(coefficient))
    density = exponential(code, code.fmul(code.fmul(x, x), constant(-0.5)))
    tail = code.fmul(code.fmul(density, constant(1 / math.sqrt(2 * math.pi))), code.fmul(series, t))
    upper = code.fsub(constant(1.0), tail)
    return code.select(code.fcmp_ordered("<", x, constant(0.0)), tail, upper)


def silu(code: Code, x: IRValue) -> IRValue:
    """X times its sigmoid."""
    return code.fmul(x, sigmoid(code, x))


def gelu(code: Code, x: IRValue) -> IRValue:
    """X times the normal distribution function of x."""
    return code.fmul(x, normal(code, x))


def gelu_tanh(code: Code, x: IRValue) -> IRValue:
    """The approximation of gelu by a hyperbolic tangent."""
    inner = code.call_vector("llvm.fma", code.fmul(x, x), constant(0.044715), constant(1.0))
    inner = tanh(code, code.fmul(code.fmul(x, inner), constant(math.sqrt(2 / math.pi))))
    return code.fmul(code.fmul(x, constant(0.5)), code.fadd(inner, constant(1.0)))


def mish_factor(code: Code, x: IRValue) -> IRValue:
    """The hyperbolic tangent of ln(1 + exp(x)): n / (n + 2) with n = exp(x) (exp(x) + 2)."""
    power = exponential(code, code.select(code.fcmp_ordered(">", x, constant(20.0)), constant(20.0), x))
    n = code.fmul(power, code.fadd(power, constant(2.0)))
    factor = code.fdiv(n, code.fadd(n, constant(2.0)))
    return code.select(code.fcmp_ordered("<", x, constant(-88.0)), constant(0.0), factor)


def mish(code: Code, x: IRValue) -> IRValue:
    """X times its factor."""
    return code.fmul(x, mish_factor(code, x))


def elu(code: Code, x: IRValue) -> IRValue:
    """Exp(x) - 1 below 0, as the product of tanh(x / 2) and exp(x) + 1, which keeps what is small."""
    power = code.fadd(exponential(code, x), constant(1.0))
    below = code.fmul(tanh(code, code.fmul(x, constant(0.5))), power)
    return code.select(code.fcmp_ordered("<", x, constant(0.0)), below, x)


def square(code: Code, x: IRValue) -> IRValue:
    """X times x."""
    return code.fmul(x, x)


def cube(code: Code, x: IRValue) -> IRValue:
    """The third power of x."""
    return code.fmul(square(code, x), x)


def hardsigmoid(code: Code, x: IRValue) -> IRValue:
    """X / 6 + 1 / 2 between 0 and 1."""
    line = code.call_vector("llvm.fma", x, constant(1 / 6), constant(0.5))
    return code.clamp(line, constant(0.0), constant(1.0))


def hardswish(code: Code, x: IRValue) -> IRValue:
    """X times its hardsigmoid."""
    return code.fmul(x, hardsigmoid(code, x))


def identity(code: Code, x: IRValue) -> IRValue:
    """X itself."""
    return x


def add(code: Code, first: IRValue, second: IRValue) -> IRValue:
    """The sum."""
    return code.fadd(first, second)


def multiply(code: Code, first: IRValue, second: IRValue) -> IRValue:
    """The product."""
    return code.fmul(first, second)


def maximum(code: Code, first: IRValue, second: IRValue) -> IRValue:
    """The larger; NaN where either is."""
    larger = code.select(code.fcmp_unordered(">", first, second), first, second)
    return code.select(code.fcmp_unordered("uno", second, second), second, larger)


OPERATIONS: dict[str, Callable[[Code, IRValue, IRValue], IRValue]] = {
    name: globals()[name] for name in OPERATION_NAMES
}
"""What kernels can do with two values, by name."""

FUNCTIONS: dict[str, Callable[[Code, IRValue], IRValue]] = {name: globals()[name] for name in FUNCTION_NAMES}
"""The activations that kernels know, by name."""
