"""Sparse kernels as a backend of :class:`sparsefx.passes.regions.Regions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from sparsefx.kernels.lowering import IMAGES, ROWS, lower, supports
from sparsefx.kernels.region import SparseRegion
from sparsefx.passes.pipeline import RegionReport
from sparsefx.passes.program import Program
from sparsefx.passes.regions import Part
from sparsefx.passes.timing import GAIN, medians


@dataclass(frozen=True)
class SparseKernels:
    """Computes convolutions and linear layers, and what stands between them, from their nonzero weights.

    Attributes:
        measured: take a region only where it is faster here than the graph's own nodes.
    """

    measured: bool
    kinds = (IMAGES, ROWS)

    def supports(self, kind: str, graph_module: fx.GraphModule, node: fx.Node, program: Program) -> bool:
        """Whether a node has an instruction."""
        return supports(kind, graph_module, node, program)

    def build(
        self, kind: str, graph_module: fx.GraphModule, part: Part, program: Program, values: Sequence[Any]
    ) -> tuple[nn.Module | None, RegionReport] | None:
        """The region, where it is not slower; None where there is no layer in it."""
        lowered = lower(kind, graph_module, part.nodes, part.inputs, part.outputs, program)
        if lowered is None:
            return None
        region = SparseRegion(lowered.program, lowered.tensors, lowered.layers)
        names = tuple(layer.name for layer in lowered.layers)
        if not self.measured:
            return region, RegionReport(names, None, None, taken=True)
        sparse, dense = medians(lambda: region(*values), lambda: part.module(*values))
        taken = sparse < GAIN * dense
        return region if taken else None, RegionReport(names, dense, sparse, taken)
