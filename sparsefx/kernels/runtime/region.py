"""A region of a graph as one module, whose layers are sparse kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sparsefx.kernels.ir.check import check
from sparsefx.kernels.ir.packed import packed_at, unpack
from sparsefx.kernels.ir.program import Convolution, RegionProgram, read_program
from sparsefx.kernels.ir.shapes import infer
from sparsefx.kernels.runtime.operators import NO_GRADIENTS, region

_TENSORS = ("indices", "codes", "values")


@dataclass(frozen=True)
class RegionLayer:
    """A layer inside of a region.

    Attributes:
        name: its name in the model.
        shape: its weight's shape.
        groups: as of the convolution.
    """

    name: str
    shape: tuple[int, ...]
    groups: int


class SparseRegion(nn.Module):
    """Several layers, and what stands between them, by sparse kernels: on the CPU, computed in float32.

    An ordinary module otherwise, but for gradients, which it does not give.

    Args:
        program: what to compute.
        tensors: its weights, as :class:`sparsefx.kernels.ir.packed.Weights` lays them out.
        layers: the layers that it replaces, in the program's order.
    """

    def __init__(
        self, program: RegionProgram, tensors: Sequence[Tensor], layers: Sequence[RegionLayer]
    ) -> None:
        super().__init__()
        self.program = program.text
        self.layers = tuple((layer.name, layer.shape, layer.groups) for layer in layers)
        for name, tensor in zip(_TENSORS, tensors, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs: a tensor, or a tuple of several.

        Args:
            inputs: images ``[N, C, *size]`` of the convolutions, or rows ``[..., C]`` of linear layers.

        Raises:
            RuntimeError: an input has a tangent of forward-mode differentiation.
        """
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs
        ):
            raise RuntimeError(NO_GRADIENTS)  # they would be lost inside
        outputs: list[Tensor] = region(list(inputs), self.tensors(), self.program)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def tensors(self) -> list[Tensor]:
        """The three vectors of packed weights, in order."""
        return [getattr(self, name) for name in _TENSORS]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse weights that the program does not fit: kernels read where they say, without looking."""
        loaded = [
            state_dict.get(prefix + name, own) for name, own in zip(_TENSORS, self.tensors(), strict=True)
        ]
        try:
            if not any(tensor.is_meta for tensor in loaded):
                check(self.program, loaded, self.layers)
        except ValueError as error:
            *_, messages = rest
            messages.append(f"weights of other layers than those of {prefix[:-1] or 'the region'}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def weights(self) -> Iterator[tuple[RegionLayer, Tensor, Tensor]]:
        """The layers that it replaces, with weight ``[out, in / groups, *kernel]`` and bias ``[out]``."""
        items = read_program(self.program).instructions
        convolutions = (item for item in items if isinstance(item, Convolution))
        tensors = self.tensors()
        for (name, shape, groups), item in zip(self.layers, convolutions, strict=True):
            packed = packed_at(item, tensors)
            yield RegionLayer(name, shape, groups), unpack(packed, shape, groups), packed.bias

    def flops(self, inputs: Sequence[tuple[int, ...]]) -> Iterator[tuple[str, int]]:
        """Each layer's name and dense floating point operations for one sample; a multiply-add counts as 2.

        Args:
            inputs: shapes of the inputs.
        """
        program = read_program(self.program)
        values = infer(program, inputs)[program.inputs :]
        sizes = [
            values[index].size
            for index, item in enumerate(program.instructions)
            if isinstance(item, Convolution)
        ]
        rows = 1 if program.dims else math.prod(inputs[0][1:-1])
        for (name, shape, _), size in zip(self.layers, sizes, strict=True):
            yield name, 2 * math.prod(shape) * math.prod(size) * rows

    def extra_repr(self) -> str:
        """The layers that it replaces."""
        return ", ".join(name for name, _, _ in self.layers)

    @classmethod
    def of_attributes(cls, values: Mapping[str, Any]) -> SparseRegion:
        """A region without tensors, from its other attributes by name."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.program, made.layers = values["program"], values["layers"]
        for name in _TENSORS:
            made.register_buffer(name, torch.empty(0, device="meta"))
        return made
