"""The custom operator ``sparsefx::region``: a whole region of a graph in lanes, between ordinary tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsefx.errors import ArgumentError
from sparsefx.kernels.ir.program import read_program
from sparsefx.kernels.ir.shapes import checked_shapes, output_shapes
from sparsefx.kernels.runtime import native

# Not torch.library.custom_op, whose calls take 0.03 ms longer: as long as a small layer.
_LIBRARY = torch.library.Library("sparsefx", "FRAGMENT")
_LIBRARY.define(
    "region(Tensor[] inputs, Tensor[] weights, str program) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)
NO_GRADIENTS = "sparse kernels give no gradients (autograd); export with kernels='dense' for them"
region = torch.ops.sparsefx.region.default


@torch.library.impl(_LIBRARY, "region", "CPU")
def _region(inputs: list[Tensor], weights: list[Tensor], text: str) -> list[Tensor]:
    """Run a program.

    Args:
        inputs: images ``[N, C, *size]``, or rows ``[..., C]``: floating point numbers of 32 bits at most;
            computed in float32.
        weights: three tensors, as :class:`sparsefx.kernels.ir.packed.Weights` lays them out.
        text: of a :class:`sparsefx.kernels.ir.program.RegionProgram`.

    Returns:
        The program's outputs, of the inputs' type.

    Raises:
        ArgumentError: an input has another type or shape than the program takes.
        MissingPackageError: llvmlite is not installed.
    """
    _check_types(inputs, weights)
    program = read_program(text)
    shapes = checked_shapes(program, tuple(tuple(tensor.shape) for tensor in inputs))
    sources = [tensor.detach().float() for tensor in inputs]
    outputs = [torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes]
    if outputs[0].numel():
        native.require()
        from sparsefx.kernels.runtime.executor import execute

        floats = [w.float() if w.is_floating_point() else w for w in weights]  # the model may be bfloat16
        execute(program, sources, outputs, [w.contiguous() for w in floats])
    return [output.to(inputs[0].dtype) for output in outputs]


def _fake(inputs: list[Tensor], weights: list[Tensor], text: str) -> list[Tensor]:
    _check_types(inputs, weights)
    devices = {str(tensor.device) for tensor in (*inputs, *weights)}
    if len(devices) > 1:  # weights without memory must not give outputs that have some, filled with anything
        raise ArgumentError(
            f"inputs and weights are on {' and '.join(sorted(devices))}; move them to one device"
        )
    shapes = output_shapes(read_program(text), [tuple(tensor.shape) for tensor in inputs])
    return [inputs[0].new_empty(shape) for shape in shapes]


def _backward(ctx: Any, *gradients: Any) -> Any:
    raise RuntimeError(NO_GRADIENTS)


torch.library.register_fake("sparsefx::region", _fake, lib=_LIBRARY)
torch.library.register_autograd("sparsefx::region", _backward, lib=_LIBRARY)


def _check_types(inputs: list[Tensor], weights: list[Tensor]) -> None:
    """Like torch, refuse what could only be computed less exactly than it was given."""
    for tensor in inputs:
        if tensor.dtype == torch.float64 or not tensor.is_floating_point():
            raise ArgumentError(
                f"input is of {tensor.dtype}; sparse kernels compute in float32: give them torch.float32, or "
                "export with kernels='dense'"
            )
