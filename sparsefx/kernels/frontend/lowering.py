"""From a part of a graph to a program: instructions in a row, some of which take others in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, fx

from sparsefx.kernels.frontend.nodes import IMAGES, ROWS, LoweredNode, NodeLowering
from sparsefx.kernels.ir.packed import Weights
from sparsefx.kernels.ir.program import NO_BOUNDS, Convolution, Instruction, Pointwise, RegionProgram
from sparsefx.kernels.runtime.region import RegionLayer
from sparsefx.passes.graph.layers import CONTRACTIONS, layer_of
from sparsefx.passes.graph.program import Program as Recorded


@dataclass(frozen=True)
class Lowered:
    """A program with its weights, and the layers in it."""

    program: RegionProgram
    tensors: tuple[Tensor, ...]
    layers: tuple[RegionLayer, ...]


def supported(kind: str, graph_module: fx.GraphModule, recorded: Recorded) -> set[fx.Node]:
    """The nodes that have an instruction in regions of this kind."""
    dims: dict[fx.Node, int] = {}  # of the images that a node computes, or that its rows were
    for node in graph_module.graph.nodes:
        lowered = NodeLowering(kind, graph_module, node, recorded).make()
        if lowered is None:
            continue
        ranks = [_rank(source, recorded) for source in lowered.sources]
        if kind == IMAGES and _rank(node, recorded) == 2 and max(ranks) == 2:
            before = {dims.get(source) for source in lowered.sources}
            if None not in before and len(before) == 1:
                dims[node] = dims[lowered.sources[0]]
        else:
            dims[node] = max(ranks)
    return {*dims}


def left_out(graph_module: fx.GraphModule, recorded: Recorded) -> dict[str, str]:
    """The names of layers that no region can have, each with the reason."""
    nodes = [
        node for node in graph_module.graph.nodes if isinstance(layer_of(graph_module, node), CONTRACTIONS)
    ]
    reasons = {str(node.target): NodeLowering(ROWS, graph_module, node, recorded).why_not() for node in nodes}
    return {name: reason for name, reason in reasons.items() if reason}


def _rank(node: fx.Node, recorded: Recorded) -> int:
    values = recorded.node_values.get(node, ())
    return len(values[0].shape) if values else 0


def lower(
    kind: str,
    graph_module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    recorded: Recorded,
) -> Lowered | None:
    """The program of some nodes; None where there is no layer with weights among them.

    Linear layers alone are left to regions of rows.
    """
    builder = _Builder(list(inputs), set(outputs))
    for node in nodes:
        lowered = NodeLowering(kind, graph_module, node, recorded).make()
        assert lowered is not None
        builder.add(node, lowered)
    least = 3 if kind == IMAGES else 2
    if not any(len(layer.shape) >= least for layer in builder.layers):
        return None
    dims = max(_rank(node, recorded) for node in inputs) - 2 if kind == IMAGES else 0
    results = tuple(builder.numbers[node] for node in outputs)
    rows = [node for node in (*inputs, *outputs) if dims and _rank(node, recorded) == 2]
    flat = tuple(builder.numbers[node] for node in rows)
    program = RegionProgram(dims, len(inputs), tuple(builder.instructions), results, flat)
    return Lowered(program, builder.weights.tensors, tuple(builder.layers))


@dataclass
class _Builder:
    """Instructions in a row, with activations and sums taken into the layers that make their operands."""

    inputs: list[fx.Node]
    outputs: set[fx.Node]
    instructions: list[Instruction] = field(default_factory=list)
    weights: Weights = field(default_factory=Weights)
    layers: list[RegionLayer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = {node: index for index, node in enumerate(self.inputs)}

    def add(self, node: fx.Node, lowered: LoweredNode) -> None:
        item = lowered.instruction(tuple(self.numbers[source] for source in lowered.sources), self.weights)
        if item == Pointwise(item.source) and self._only_read_here(lowered.sources[0]):
            self.numbers[node] = item.source
            return
        fused = None if lowered.spreads else self._fused(lowered.sources, item)
        if fused is not None:
            number, item = fused
            self.instructions[number - len(self.inputs)] = item
            self.numbers[node] = number
            return
        self.layers += [lowered.layer] if lowered.layer else []
        self.numbers[node] = len(self.inputs) + len(self.instructions)
        self.instructions.append(item)

    def _fused(self, sources: tuple[fx.Node, ...], item: Instruction) -> tuple[int, Instruction] | None:
        """An earlier instruction that computes this one as well, and its number."""
        if not isinstance(item, Pointwise) or item.weights is not None or item.function != "identity":
            return None
        if item.operation == "add" and sources[0] is not sources[1]:
            last = max(sources, key=lambda node: self.numbers[node])
            before = self._only_read_here(last)
            if isinstance(before, Convolution) and before.residual is None and before.bounds == NO_BOUNDS:
                residual = min(self.numbers[source] for source in sources)
                return self.numbers[last], replace(before, residual=residual)
        elif not item.operation:
            before = self._only_read_here(sources[0])
            if isinstance(before, Convolution | Pointwise) and before.bounds == NO_BOUNDS:
                return self.numbers[sources[0]], replace(before, bounds=item.bounds)
        return None

    def _only_read_here(self, node: fx.Node) -> Instruction | None:
        """The instruction that makes a value which nothing else needs."""
        if node in self.inputs or node in self.outputs or len(node.users) > 1:
            return None
        return self.instructions[self.numbers[node] - len(self.inputs)]
