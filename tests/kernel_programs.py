"""Programs of one convolution, and the same by torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from sparsefx.kernels.ir.packed import Packed, Weights, pack
from sparsefx.kernels.ir.program import Convolution, RegionProgram
from sparsefx.kernels.runtime.region import RegionLayer, SparseRegion

CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


@dataclass(frozen=True)
class Case:
    """A convolution: its weight is ``[outputs * groups, inputs, *window]``, its image ``size``."""

    images: int = 2
    size: tuple[int, ...] = (6, 5)
    inputs: int = 3
    outputs: int = 4
    groups: int = 1
    window: tuple[int, ...] = (3, 3)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    density: float = 0.3
    width: int = 2
    seed: int = 0

    @property
    def fits(self) -> bool:
        reach = [spread * (w - 1) + 1 for w, spread in zip(self.window, self.dilation, strict=True)]
        return all(n + 2 * p >= r for n, p, r in zip(self.size, self.padding, reach, strict=True))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight and bias."""
        random = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.images, self.inputs * self.groups, *self.size, generator=random)
        weight = torch.randn(self.outputs * self.groups, self.inputs, *self.window, generator=random)
        weight *= torch.rand(weight.shape, generator=random) < self.density
        return x, weight, torch.randn(len(weight), generator=random)

    def expected(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        function = CONVOLUTIONS[len(self.size)]
        result: Tensor = function(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return result

    def instruction(self, **others: object) -> Convolution:
        segments = -(-self.inputs * self.groups // self.width)
        nonzeros = int(self.tensors()[1].count_nonzero())
        channels = self.inputs * self.groups, self.outputs * self.groups
        window, stride, dilation = (dhw(v, 1) for v in (self.window, self.stride, self.dilation))
        begun, padding = (0, 0, 0), dhw(self.padding, 0)
        made = Convolution(0, begun, *channels, window, stride, padding, dilation, segments, nonzeros)
        return replace(made, **others)  # type: ignore[arg-type]

    def packed(self, weight: Tensor, bias: Tensor) -> Packed:
        return pack(weight, bias, self.groups, self.width)

    def weights(self, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
        weights = Weights()
        weights.add(self.packed(weight, bias))
        return weights.tensors


def dhw(values: tuple[int, ...], missing: int) -> tuple[int, int, int]:
    depth, height, width = (*((missing,) * (3 - len(values))), *values)
    return depth, height, width


def region_of(case: Case, weight: Tensor, bias: Tensor, **others: object) -> SparseRegion:
    """A region of the convolution alone; with ``residual=1``, one with a second input."""
    inputs = 2 if others.get("residual") else 1
    program = RegionProgram(len(case.size), inputs, (case.instruction(**others),), (inputs,))
    layer = RegionLayer("layer", tuple(weight.shape), case.groups)
    return SparseRegion(program, case.weights(weight, bias), [layer])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.integers(1, 3))
    most = (40, 17, 6)[dims - 1]

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(values) for _ in range(dims))

    case = Case(
        draw(st.sampled_from([1, 2, 3, 5, 8, 13, 16, 17, 33])),
        each(st.integers(1, most)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        draw(st.sampled_from([1, 1, 2, 3])),
        each(st.integers(1, 4)),
        each(st.integers(1, 3)),
        each(st.integers(0, 2)),
        each(st.integers(1, 2)),
        draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        draw(st.integers(1, 6)),
        draw(st.integers(0, 1000)),
    )
    return case if case.fits else replace(case, padding=(3,) * dims, window=(1,) * dims)
