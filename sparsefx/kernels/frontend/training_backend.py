"""Sparse kernels of training as a backend of :class:`sparsefx.passes.regions.regions.Regions`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx.kernels.frontend.nodes import IMAGES, ROWS
from sparsefx.kernels.frontend.training import left_out, lower, supported
from sparsefx.kernels.training.region import TrainingRegion
from sparsefx.passes.graph.program import Program
from sparsefx.passes.manager.pipeline import RegionReport
from sparsefx.passes.regions.regions import Built, Part
from sparsefx.passes.running.timing import GAIN

_REPETITIONS = 4  # the first of which is not counted


@dataclass(frozen=True)
class TrainingKernels:
    """Trains layers, and computes what stands between them, from their nonzero weights.

    Attributes:
        compared: take a region only where a forward and backward pass of it is faster here than torch's.
    """

    compared: bool
    kinds = (IMAGES, ROWS)
    measured = False  # the graph as a whole is not timed: in no mode would that be a training step

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
        region = TrainingRegion(
            lowered.program, convolutions, normalisations, lowered.flattened, lowered.dropouts
        )
        if not self.compared:
            return Built(region, RegionReport(lowered.convolutions, None, None, taken=True))
        sparse, dense = _seconds(region, part, values)
        taken = sparse < GAIN * dense
        return Built(region if taken else None, RegionReport(lowered.convolutions, dense, sparse, taken))


def _seconds(region: TrainingRegion, part: Part, values: Mapping[fx.Node, Any]) -> tuple[float, float]:
    """What a forward and backward pass take by the region, and by the part's own nodes: medians, in turns."""
    inputs = [values[node].detach() for node in part.inputs]
    for node, value in zip(part.inputs, inputs, strict=True):
        value.requires_grad_(node.op != "placeholder" and value.is_floating_point())
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with torch.enable_grad():
        for _ in range(_REPETITIONS):
            for sparse, module in ((True, region), (False, part.module)):
                region.pack() if sparse else region.unpack()
                start = time.perf_counter()
                _run_both_ways(module, inputs)
                seconds[sparse].append(time.perf_counter() - start)
    sparse_time, dense_time = (statistics.median(seconds[sparse][1:]) for sparse in (True, False))
    return sparse_time, dense_time


def _run_both_ways(module: nn.Module, inputs: list[Tensor]) -> None:
    outputs = module(*inputs)
    total = torch.stack(
        [output.sum() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    ).sum()
    parameters = module.trained() if isinstance(module, TrainingRegion) else module.parameters()
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if wanted:
        torch.autograd.grad(total, wanted, allow_unused=True)
