"""Shapes of the values of a program, from those of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sparsefx.errors import ArgumentError
from sparsefx.kernels.ir.program import (
    Concatenate,
    Convolution,
    Instruction,
    Mean,
    Pointwise,
    Pool,
    RegionProgram,
)


class Shape(NamedTuple):
    """A value's channels, and its depth, height and width; sizes may be symbols."""

    channels: Any
    size: tuple[Any, Any, Any]


@lru_cache(maxsize=4096)
def checked_shapes(program: RegionProgram, inputs: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Shapes of the output tensors, if :func:`check_shapes` finds nothing wrong with those of the inputs."""
    check_shapes(program, inputs)
    return output_shapes(program, inputs)


def output_shapes(program: RegionProgram, inputs: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Shapes of the output tensors, given those of the input tensors."""
    values = infer(program, inputs)
    if not program.dims:
        return [(*inputs[0][:-1], values[output].channels) for output in program.outputs]
    missing = 3 - program.dims
    sizes = [() if output in program.flat else values[output].size[missing:] for output in program.outputs]
    return [
        (inputs[0][0], values[output].channels, *size)
        for output, size in zip(program.outputs, sizes, strict=True)
    ]


def infer(program: RegionProgram, inputs: Sequence[tuple[Any, ...]]) -> list[Shape]:
    """Shapes of all values.

    Args:
        program: what is computed.
        inputs: ``[N, C, *size]`` of images, ``[..., C]`` of rows.
    """
    return of_values(program, [_of_input(program, shape) for shape in inputs])


def of_values(program: RegionProgram, inputs: Sequence[Shape]) -> list[Shape]:
    """Shapes of all values, given the inputs'."""
    values = list(inputs)
    for item in program.instructions:
        values.append(_of_result(item, values))
    return values


def check_shapes(program: RegionProgram, inputs: Sequence[tuple[int, ...]]) -> None:
    """Refuse inputs that the kernels would read or write outside of.

    Raises:
        ArgumentError: an input has other dimensions or channels than the program takes, or is too small.
    """
    if len(inputs) != program.inputs:
        raise ArgumentError(f"{len(inputs)} inputs were given; the region takes {program.inputs}")
    first = inputs[0]
    for number, shape in enumerate(inputs):
        dims = 2 if number in program.flat else program.dims + 2
        if program.dims and len(shape) != dims:
            raise ArgumentError(
                f"input is {shape}; these sparse kernels take {dims} dimensions, [N, C, ...], as the example "
                "inputs of the export had"
            )
    together = [shape[:1] if program.dims else shape[:-1] for shape in inputs]
    if any(sizes != together[0] for sizes in together):
        raise ArgumentError(f"inputs are {', '.join(map(str, inputs))}, which do not belong together")
    values = infer(program, inputs)
    for number, item in enumerate(program.instructions):
        problem = _problem(item, values, values[len(inputs) + number])
        if problem:
            raise ArgumentError(f"input is {first}; {problem}")
    for number in program.flat:
        if values[number].size != (1, 1, 1):
            raise ArgumentError(
                f"input is {first}; its image inside would be flattened at {values[number].size}, not at one "
                "element, as the example's was"
            )


def _of_input(program: RegionProgram, shape: tuple[Any, ...]) -> Shape:
    if not program.dims:
        return Shape(shape[-1], (1, 1, 1))
    missing: tuple[Any, ...] = (1,) * (5 - len(shape))
    depth, height, width = (*missing, *shape[2:])
    return Shape(shape[1], (depth, height, width))


def _of_result(item: Instruction, values: Sequence[Shape]) -> Shape:
    source = values[item.source]
    if isinstance(item, Mean):
        return Shape(source.channels, (1, 1, 1))
    if isinstance(item, Concatenate):
        return Shape(sum(values[index].channels for index in item.sources), source.size)
    if isinstance(item, Pointwise):
        return source
    channels = item.out_channels if isinstance(item, Convolution) else source.channels
    return Shape(channels, slid(source.size, item))


def slid(size: tuple[Any, Any, Any], item: Convolution | Pool) -> tuple[Any, Any, Any]:
    """The size of the result of sliding a window over an image."""
    dilation = item.dilation if isinstance(item, Convolution) else (1, 1, 1)
    ceil = isinstance(item, Pool) and item.ceil
    depth, height, width = (
        _positions(length, spread * (window - 1) + 1, step, pad, ceil)
        for length, window, step, pad, spread in zip(
            size, item.kernel, item.stride, item.padding, dilation, strict=True
        )
    )
    return depth, height, width


def _positions(length: Any, reach: int, step: int, pad: int, ceil: bool) -> Any:
    """How many windows there are along an axis; ``ceil``: the last one may end outside, but begins inside."""
    rest = length + 2 * pad - reach
    if not ceil:
        return rest // step + 1
    last = (rest + step - 1) // step
    return last if last * step >= length + pad else last + 1


def _problem(item: Instruction, values: Sequence[Shape], result: Shape) -> str:
    """What does not fit, in words; empty if all does."""
    source = values[item.source]
    if min(result.size) < 1:
        return f"it is too small: a layer inside would get {source.size}"
    if isinstance(item, Convolution):
        if source.channels != item.in_channels:
            return f"a layer that takes {item.in_channels} channels would get {source.channels}"
        return _unlike(result, values, item.residual)
    if isinstance(item, Concatenate):
        same = all(values[index].size == source.size for index in item.sources)
        return "" if same else "values to concatenate have other sizes"
    if isinstance(item, Pointwise):
        if item.channels is not None and item.channels != source.channels:
            return f"factors of {item.channels} channels would get {source.channels}"
        whole = _unlike(source, values, item.other)
        return _unlike(Shape(source.channels, (1, 1, 1)), values, item.other) if whole else ""
    return ""


def _unlike(shape: Shape, values: Sequence[Shape], index: int | None) -> str:
    if index is None or values[index] == shape:
        return ""
    return f"values of {tuple(shape)} and {tuple(values[index])} cannot be combined"
