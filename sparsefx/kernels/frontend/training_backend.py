"""Sparse kernels of training as a backend of :class:`sparsefx.passes.regions.regions.Regions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from sparsefx.kernels.frontend.nodes import IMAGES, ROWS
from sparsefx.kernels.frontend.training import left_out, lower, supported
from sparsefx.kernels.training.region import TrainingRegion
from sparsefx.passes.graph.program import Program
from sparsefx.passes.manager.pipeline import RegionReport
from sparsefx.passes.regions.regions import Built, Part


@dataclass(frozen=True)
class TrainingKernels:
    """Trains layers, and computes what stands between them, from their nonzero weights."""

    kinds = (IMAGES, ROWS)
    measured = False

    def supported(self, kind: str, graph_module: fx.GraphModule, program: Program) -> set[fx.Node]:
        """The nodes that have an instruction."""
        return supported(kind, graph_module, program)

    def left_out(self, graph_module: fx.GraphModule, program: Program) -> dict[str, str]:
        """The names of layers that have none, each with the reason."""
        return left_out(graph_module, program)

    def build(
        self,
        kind: str,
        graph_module: fx.GraphModule,
        part: Part,
        program: Program,
        values: Mapping[fx.Node, Any],
    ) -> Built | None:
        """The region; None where there is no layer in it."""
        lowered = lower(kind, graph_module, part.nodes, part.inputs, part.outputs, program)
        if lowered is None:
            return None
        convolutions = [graph_module.get_submodule(name) for name in lowered.convolutions]
        normalisations = [graph_module.get_submodule(name) for name in lowered.normalisations]
        region = TrainingRegion(lowered.program, convolutions, normalisations, lowered.flattened)
        return Built(region, RegionReport(lowered.convolutions, None, None, taken=True))
