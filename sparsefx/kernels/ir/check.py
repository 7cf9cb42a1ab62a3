"""Whether a program and its weights fit together: kernels read and write where these say, without looking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsefx.kernels.ir.function_names import FUNCTION_NAMES, OPERATION_NAMES
from sparsefx.kernels.ir.packed import MOST_CODES, MOST_INDICES, packed_at
from sparsefx.kernels.ir.program import (
    Convolution,
    Instruction,
    Pointwise,
    Pool,
    RegionProgram,
    read_program,
)

_LARGEST = 2**20


def check(text: str, tensors: Sequence[Tensor], layers: Sequence[Any]) -> None:
    """Refuse what would read or write outside of its memory.

    Args:
        text: a program.
        tensors: its weights: three.
        layers: the layers that it stands for: name, shape and groups.

    Raises:
        ValueError: something does not fit; it is named.
    """
    program = _read(text)
    _check_tensors(tensors)
    _need(_is_index(program.dims, 4), "it has images of no dimension")
    _need(_is_index(program.inputs, _LARGEST) and program.inputs > 0, "it has no inputs")
    for index, item in enumerate(program.instructions):
        _check_instruction(item, program.inputs + index, tensors)
    values = program.inputs + len(program.instructions)
    _need(type(program.outputs) is tuple and bool(program.outputs), "its outputs are none")
    made = all(_is_index(value, values) and value >= program.inputs for value in program.outputs)
    _need(made and len({*program.outputs}) == len(program.outputs), "its outputs are not there")
    ends = {*range(program.inputs), *program.outputs} if program.dims else set()
    flat = type(program.flat) is tuple and all(type(value) is int and value in ends for value in program.flat)
    _need(flat, "it flattens what is no input or output")
    convolutions = [item for item in program.instructions if isinstance(item, Convolution)]
    _need(len(layers) == len(convolutions), f"it has {len(convolutions)} layers, not {len(layers)}")
    for layer, item in zip(layers, convolutions, strict=True):
        _check_layer(layer, item)


def _read(text: str) -> RegionProgram:
    try:
        return read_program(text)
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"it is no program ({type(error).__name__}: {error})") from error


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    flat = len(tensors) == 3 and all(tensor.dim() == 1 for tensor in tensors)
    _need(flat, "its weights are not three tensors of one dimension")
    indices, codes, values = tensors
    _need((indices.dtype, codes.dtype) == (torch.int32, torch.int16), "type of its indices")
    _need(values.is_floating_point(), "type of its values")


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _is_index(value: Any, size: int) -> bool:
    return type(value) is int and 0 <= value < size


def _check_instruction(item: Instruction, number: int, tensors: Sequence[Tensor]) -> None:
    there = type(item.operands) is tuple and bool(item.operands)
    there = there and all(_is_index(operand, number) for operand in item.operands)
    _need(there, f"instruction {number} reads what is not there")
    for name in ("kernel", "stride", "dilation", "padding"):
        least = 0 if name == "padding" else 1
        values = getattr(item, name, (1, 1, 1))
        whole = type(values) is tuple and len(values) == 3 and all(type(length) is int for length in values)
        _need(whole and all(least <= length < _LARGEST for length in values), f"instruction {number}: {name}")
    if isinstance(item, Convolution | Pointwise):
        pair = type(item.bounds) is tuple and len(item.bounds) == 2
        _need(pair and all(type(bound) is float for bound in item.bounds), f"instruction {number}: bounds")
    if isinstance(item, Convolution):
        _check_convolution(item, number, tensors)
    elif isinstance(item, Pointwise):
        _check_pointwise(item, number, tensors)
    elif isinstance(item, Pool):
        known = type(item.largest) is bool and type(item.ceil) is bool and item.largest >= item.ceil
        _need(known, f"instruction {number}: kind of pooling")


def _check_pointwise(item: Pointwise, number: int, tensors: Sequence[Tensor]) -> None:
    known = item.operation in ("", *OPERATION_NAMES) and item.function in FUNCTION_NAMES
    _need(known and bool(item.operation) == (item.other is not None), f"instruction {number}: operation")
    if item.weights is not None:
        whole = _is_index(item.channels, MOST_CODES) and _is_index(item.weights, len(tensors[2]) + 1)
        inside = whole and item.weights + 2 * (item.channels or 0) <= len(tensors[2])
        _need(inside, f"instruction {number}: factors")


def _check_convolution(item: Convolution, number: int, tensors: Sequence[Tensor]) -> None:
    what = f"instruction {number}: "
    sizes = (item.in_channels, item.out_channels, item.segments)
    whole = all(_is_index(size, MOST_INDICES) and size for size in sizes)
    _need(whole and _is_index(item.nonzeros, MOST_INDICES), f"{what}sizes")
    _need(item.codes <= MOST_CODES, f"{what}window")
    begun = type(item.weights) is tuple and len(item.weights) == 3
    _need(begun and all(_is_index(start, MOST_INDICES) for start in item.weights), f"{what}weights")
    packed = packed_at(item, tensors)
    rows, codes = packed.rows, packed.codes
    _need(len(rows) == item.segments * item.out_channels + 1, f"{what}{len(rows)} rows")
    _need(len(packed.bias) == item.out_channels, f"{what}{len(packed.bias)} biases")
    ends = int(rows[0]), int(rows[-1])
    _need(ends == (0, len(codes)) and len(codes) == item.nonzeros, f"{what}number of nonzeros")
    _need(bool((rows.diff() >= 0).all()), f"{what}rows do not ascend")
    if len(codes):
        inside = int(codes.min()) >= 0 and int(codes.max()) < item.codes
        _need(inside, f"{what}a nonzero is outside of the window")


def _check_layer(layer: Any, item: Convolution) -> None:
    _need(type(layer) is tuple and len(layer) == 3, "a layer is no name, shape and groups")
    name, shape, groups = layer
    _need(type(name) is str and type(shape) is tuple and len(shape) >= 2, "a layer has no name or shape")
    whole = all(type(size) is int and size > 0 for size in (*shape, groups))
    fits = whole and shape[0] == item.out_channels and shape[1] * groups == item.in_channels
    taps = 1
    for size in shape[2:]:
        taps *= size
    _need(fits and taps == item.kernel[0] * item.kernel[1] * item.kernel[2], f"layer {name[:80]!r}: shape")
