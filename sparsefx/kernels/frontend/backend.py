"""Sparse kernels as a backend of :class:`sparsefx.passes.regions.regions.Regions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from sparsefx.kernels.frontend.lowering import Lowered, left_out, lower, supported
from sparsefx.kernels.frontend.nodes import IMAGES, ROWS
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.passes.graph.program import Program
from sparsefx.passes.manager.pipeline import RegionReport
from sparsefx.passes.regions.regions import Built, Part
from sparsefx.passes.running.timing import GAIN, is_faster, medians


@dataclass(frozen=True)
class SparseKernels:
    """Computes convolutions and linear layers, and what stands between them, from their nonzero weights.

    Attributes:
        measured: take a region only where it is faster here than the graph's own nodes.
    """

    measured: bool
    kinds = (IMAGES, ROWS)

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
        """The region, where it is not slower; None where there is no layer in it.

        Where it is slower, those of its layers that alone are slower are left out at the next attempt.
        """
        lowered = lower(kind, graph_module, part.nodes, part.inputs, part.outputs, program)
        if lowered is None:
            return None
        region = _region(lowered)
        names = tuple(layer.name for layer in lowered.layers)
        if not self.measured:
            return Built(region, RegionReport(names, None, None, taken=True))
        inputs = [values[node] for node in part.inputs]
        sparse, dense = medians(lambda: region(*inputs), lambda: part.module(*inputs))
        report = RegionReport(names, dense, sparse, taken=sparse < GAIN * dense)
        if report.taken:
            return Built(region, report)
        layers = [node for node in part.nodes if node.target in names]
        slower = frozenset(n for n in layers if _is_slower(graph_module, n, program, values))
        return Built(None, report, slower if len(slower) < len(layers) else frozenset())


def _region(lowered: Lowered) -> SparseRegion:
    return SparseRegion(lowered.program, lowered.tensors, lowered.layers)


def _is_slower(
    graph_module: fx.GraphModule, node: fx.Node, program: Program, values: Mapping[fx.Node, Any]
) -> bool:
    """Whether a layer on its own is slower by sparse kernels."""
    layer = graph_module.get_submodule(str(node.target))
    kind = ROWS if isinstance(layer, nn.Linear) else IMAGES
    lowered = lower(kind, graph_module, [node], node.all_input_nodes, [node], program)
    assert lowered is not None
    region = _region(lowered)
    (x,) = (values[source] for source in node.all_input_nodes)
    return not is_faster(lambda: region(x), lambda: layer(x))
