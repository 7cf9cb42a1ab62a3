"""From a part of a graph to a program of training: what stands between convolutions becomes combinations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sparsefx.kernels.frontend.nodes import IMAGES, ROWS, NodeLowering, padding_of
from sparsefx.kernels.ir.activation import NO_ACTIVATION, Activation
from sparsefx.kernels.ir.packed import Weights
from sparsefx.kernels.ir.program import DHW, Concatenate, Mean, Pointwise, Pool, dhw
from sparsefx.kernels.training.program import (
    WHOLE,
    Combination,
    Concatenation,
    Instruction,
    Normalisation,
    SparseConvolution,
    Summand,
    TrainingProgram,
    Windows,
)
from sparsefx.passes.graph.layers import is_plain, layer_of
from sparsefx.passes.graph.program import Program as Recorded

_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
_BY_CHANNEL = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}
"""Dropouts of whole channels, by the rank of what they take."""
_ONES: DHW = (1, 1, 1)
_SAME = Combination((Summand(0),))


@dataclass(frozen=True)
class LoweredTraining:
    """A program, and the layers in it.

    Attributes:
        program: what is computed.
        convolutions: names of the layers of its convolutions.
        normalisations: names of the layers of its normalisations.
        flattened: which of the outputs are images that are returned as rows.
        dropouts: that make the program's noises.
    """

    program: TrainingProgram
    convolutions: tuple[str, ...]
    normalisations: tuple[str, ...]
    flattened: tuple[bool, ...]
    dropouts: tuple[nn.Module, ...]


@dataclass(frozen=True)
class _Node:
    """What a node computes: a layer, something of its sources, or the same in another shape."""

    sources: tuple[fx.Node, ...]
    layer: nn.Module | None = None
    combination: Combination | None = None
    dropout: nn.Module | None = None
    flattens: bool = False
    concatenates: bool = False


def supported(kind: str, graph_module: fx.GraphModule, recorded: Recorded) -> set[fx.Node]:
    """The nodes that regions of this kind can have."""
    found: set[fx.Node] = set()
    flat: set[fx.Node] = set()  # images as rows
    for node in graph_module.graph.nodes:
        lowered = _lowered(kind, graph_module, node, recorded)
        if lowered is None:
            continue
        if lowered.flattens or (lowered.layer is None and any(source in flat for source in lowered.sources)):
            flat.add(node)
        by_channel = isinstance(lowered.layer, _BatchNorm) or lowered.concatenates
        if by_channel and any(source in flat for source in lowered.sources):
            continue  # its channels would be elements of images
        found.add(node)
    return found


def left_out(graph_module: fx.GraphModule, recorded: Recorded) -> dict[str, str]:
    """The names of layers that no region can have, each with the reason."""
    reasons = {}
    for node in graph_module.graph.nodes:
        layer = layer_of(graph_module, node)
        if isinstance(layer, nn.Linear | _ConvNd):
            reasons[str(node.target)] = _why_not(NodeLowering(ROWS, graph_module, node, recorded))
    return {name: reason for name, reason in reasons.items() if reason}


def _why_not(lowering: NodeLowering) -> str:
    reason = lowering.why_not()
    types = {value.dtype for value in lowering.recorded.node_values.get(lowering.node, ())}
    if not reason and types != {torch.float32}:
        return f"it computes in {' and '.join(map(str, types))}"
    return reason


def _lowered(kind: str, graph_module: fx.GraphModule, node: fx.Node, recorded: Recorded) -> _Node | None:
    lowering = NodeLowering(kind, graph_module, node, recorded)
    if node.op not in ("call_module", "call_function", "call_method") or _why_not(lowering):
        return None
    layer, sources = layer_of(graph_module, node), tuple(node.all_input_nodes)
    rank = len(recorded.node_values[node][0].shape)
    if isinstance(layer, nn.Linear | _ConvNd | _BatchNorm):
        return _Node(sources, layer) if len(sources) == 1 and _fits(kind, layer, rank) else None
    if kind == IMAGES and _flattens(node, recorded):
        return _Node(sources, flattens=True)
    dropout = _dropout(graph_module, node, rank)
    if dropout is not None and len(sources) == 1:
        drops = getattr(dropout, "p", 0.0) > 0
        return _Node(sources, dropout=dropout) if drops else _Node(sources, combination=_SAME)
    leaky = _leaky(node, recorded)
    if leaky is not None:
        return _Node(sources, combination=Combination((Summand(0),), leaky)) if len(sources) == 1 else None
    lowered = lowering.make()
    if lowered is None or lowered.spreads or lowered.layer is not None or _is_clamp(node, recorded):
        return None
    instruction = lowered.instruction(tuple(range(len(lowered.sources))), Weights())
    if isinstance(instruction, Concatenate):
        return _Node(lowered.sources, concatenates=True)
    combination = _combination(instruction)
    return None if combination is None else _Node(lowered.sources, combination=combination)


def _dropout(graph_module: fx.GraphModule, node: fx.Node, rank: int) -> nn.Module | None:
    """The module that makes a node's noise, if it is a dropout; for a function one of its own."""
    layer = layer_of(graph_module, node)
    if node.op == "call_function" and node.target is F.dropout:
        given = signature(F.dropout).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        p, training, inplace = (given.arguments[name] for name in ("p", "training", "inplace"))
        fixed = isinstance(p, int | float) and isinstance(training, bool)
        alone = not inplace or len(node.all_input_nodes[0].users) == 1
        return nn.Dropout(p if training else 0.0) if fixed and alone else None
    drops = type(layer) is nn.Dropout or type(layer) is _BY_CHANNEL.get(rank)
    return layer if drops and is_plain(layer) else None


def _leaky(node: fx.Node, recorded: Recorded) -> Activation | None:
    """What a leaky ReLU computes, if the node is one."""
    calls = recorded.calls_of(node)
    if len(calls) != 1 or calls[0].name != "leaky_relu":
        return None
    slope = calls[0].args[1] if len(calls[0].args) > 1 else 0.01
    return Activation(below=float(slope)) if isinstance(slope, int | float) else None


def _is_clamp(node: fx.Node, recorded: Recorded) -> bool:
    """Whether the gradient passes at the bounds themselves, as through no activation."""
    return any(call.name.startswith("clamp") for call in recorded.calls_of(node))


def _fits(kind: str, layer: nn.Module, rank: int) -> bool:
    if isinstance(layer, nn.Linear):
        return kind == ROWS or rank == 2
    if isinstance(layer, _BatchNorm):
        return type(layer) in _NORMS and (kind == IMAGES or rank == 2)
    return kind == IMAGES


def _flattens(node: fx.Node, recorded: Recorded) -> bool:
    """Whether a node makes rows of images, with all elements of an image in a row."""
    calls = recorded.calls_of(node)
    if len(calls) != 1 or calls[0].name not in ("view", "_unsafe_view") or len(calls[0].inputs) != 1:
        return False
    image, rows = calls[0].inputs[0].shape, calls[0].outputs[0].shape
    return len(image) in (3, 4, 5) and rows == (image[0], prod(image[1:]))


def _combination(item: Any) -> Combination | None:
    """A combination of the values 0 and 1, from an instruction of inference."""
    own = (Summand(0),)
    if isinstance(item, Mean):
        return Combination(own, windows=Windows(False, WHOLE, _ONES, (0, 0, 0)))
    if isinstance(item, Pool):
        windows = Windows(item.largest, item.kernel, item.stride, item.padding, item.ceil)
        return Combination(own, windows=windows)
    if not isinstance(item, Pointwise) or item.weights is not None:
        return None
    if item.operation:
        plain = item == Pointwise(item.source, item.other, "add")
        return Combination((Summand(item.source), Summand(item.other or 0))) if plain else None
    return Combination(own, _activation(item)) if item.bounds[0] in (0.0, -inf) else None


def _activation(item: Pointwise) -> Activation:
    low, high = item.bounds
    return Activation(item.function, 0.0 if low == 0 else 1.0, high)


def lower(
    kind: str,
    graph_module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    recorded: Recorded,
) -> LoweredTraining | None:
    """The program of some nodes; None where there is no layer of this kind among them."""
    found = [(node, _lowered(kind, graph_module, node, recorded)) for node in nodes]
    dropouts = tuple(lowered.dropout for _, lowered in found if lowered is not None and lowered.dropout)
    builder = _Builder(kind, graph_module, recorded, list(inputs), set(outputs), len(dropouts))
    for node, lowered in found:
        assert lowered is not None
        builder.add(node, lowered)
    wanted = _ConvNd if kind == IMAGES else nn.Linear
    layers = [graph_module.get_submodule(name) for name in builder.convolutions]
    values = [builder.numbers[node] for node in outputs]
    if not any(isinstance(layer, wanted) for layer in layers) or len({*values}) < len(values):
        return None
    ranks = [len(recorded.node_values[node][0].shape) for node in inputs]
    dims = max(ranks) - 2 if kind == IMAGES else 0
    rows = [
        builder.numbers[node]
        for node in (*inputs, *outputs)
        if dims and len(recorded.node_values[node][0].shape) == 2 and node not in builder.flat
    ]
    program = _without_dead(
        TrainingProgram(
            dims, builder.first, tuple(builder.instructions), tuple(values), tuple(rows), len(dropouts)
        )
    )
    flattened = tuple(node in builder.flat for node in outputs)
    layers_of = tuple(builder.convolutions), tuple(builder.normalisations)
    return LoweredTraining(program, *layers_of, flattened, dropouts)


@dataclass
class _Builder:
    """Instructions in a row, where what follows a combination goes into it if nothing else reads it."""

    kind: str
    graph_module: fx.GraphModule
    recorded: Recorded
    inputs: list[fx.Node]
    outputs: set[fx.Node]
    noises: int
    instructions: list[Instruction] = field(default_factory=list)
    convolutions: list[str] = field(default_factory=list)
    normalisations: list[str] = field(default_factory=list)
    flat: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.numbers = {node: index for index, node in enumerate(self.inputs)}
        self.first = len(self.inputs) + self.noises  # the number of the first instruction's value
        self._noise = iter(range(len(self.inputs), self.first))

    def add(self, node: fx.Node, lowered: _Node) -> None:
        if lowered.layer is None and (lowered.flattens or any(s in self.flat for s in lowered.sources)):
            self.flat.add(node)
        numbers = tuple(self.numbers[source] for source in lowered.sources)
        if lowered.flattens:
            self.numbers[node] = numbers[0]
        elif isinstance(lowered.layer, _BatchNorm):
            self.normalisations.append(str(node.target))
            self._append(node, Combination((Summand(numbers[0], self._normalisation(lowered.layer)),)))
        elif lowered.layer is not None:
            self.convolutions.append(str(node.target))
            self._append(node, self._convolution(lowered.layer, lowered.sources[0], numbers[0]))
        elif lowered.concatenates:
            self._append(node, Concatenation(numbers))
        else:
            item = lowered.combination or Combination((Summand(0),), noise=next(self._noise))
            self._combine(node, lowered.sources, numbers, item)

    def _append(self, node: fx.Node, item: Instruction) -> None:
        self.numbers[node] = self.first + len(self.instructions)
        self.instructions.append(item)

    def _normalisation(self, layer: _BatchNorm) -> Normalisation:
        number = len(self.normalisations) - 1
        return Normalisation(number, layer.affine, layer.running_mean is not None, layer.eps)

    def _convolution(self, layer: nn.Module, source: fx.Node, number: int) -> SparseConvolution:
        index = len(self.convolutions) - 1
        if isinstance(layer, _ConvNd):
            padding = padding_of(layer)
            assert padding is not None
            return SparseConvolution(
                number,
                index,
                layer.in_channels,
                layer.out_channels,
                dhw(layer.kernel_size, 1),
                dhw(layer.stride, 1),
                dhw(padding, 0),
                dhw(layer.dilation, 1),
                layer.groups,
                layer.bias is not None,
            )
        assert isinstance(layer, nn.Linear)
        window = self._image_of(source) if source in self.flat else _ONES
        channels = layer.in_features // prod(window)
        plain = (window, _ONES, (0, 0, 0), _ONES, 1, layer.bias is not None)
        return SparseConvolution(number, index, channels, layer.out_features, *plain, whole=True)

    def _image_of(self, node: fx.Node) -> DHW:
        """The size of the images that a node has as rows."""
        while len(self.recorded.node_values[node][0].shape) == 2:  # goes back to where they are images
            node = node.all_input_nodes[0]
        return dhw(tuple(self.recorded.node_values[node][0].shape[2:]), 1)

    def _combine(
        self, node: fx.Node, sources: tuple[fx.Node, ...], numbers: tuple[int, ...], item: Combination
    ) -> None:
        before = [self._open(source) for source in sources]
        if item == _SAME:
            self.numbers[node] = numbers[0]
        elif len(item.summands) == 2:
            summands = [
                one.summands[0] if one is not None and _is_bare(one) else Summand(number)
                for one, number in zip(before, numbers, strict=True)
            ]
            if len(summands) == 1:
                summands *= 2  # a value added to itself
            self._append(node, Combination((summands[0], summands[1])))
        elif before[0] is not None and _takes_in(before[0], item):
            taken = replace(before[0], windows=before[0].windows or item.windows)
            if item.activation != NO_ACTIVATION:
                taken = replace(taken, activation=item.activation)
            if item.noise is not None:
                taken = replace(taken, noise=item.noise)
            self.instructions[numbers[0] - self.first] = taken
            self.numbers[node] = numbers[0]
        else:
            self._append(node, replace(item, summands=(Summand(numbers[0]),)))

    def _open(self, node: fx.Node) -> Combination | None:
        """The combination that makes a value which nothing else needs."""
        if node in self.inputs or node in self.outputs or len(node.users) > 1:
            return None
        index = self.numbers[node] - self.first
        item = self.instructions[index] if index >= 0 else None
        return item if isinstance(item, Combination) else None


def _is_bare(item: Combination) -> bool:
    return item == Combination(item.summands) and len(item.summands) == 1


def _takes_in(before: Combination, item: Combination) -> bool:
    """Whether one combination can compute both; the largest of a window may come before ReLU, or after it."""
    if before.noise is not None:
        return False
    if item.activation == NO_ACTIVATION:
        return before.windows is None and len(before.summands) == 1
    if before.activation != NO_ACTIVATION:
        return False
    if before.windows is not None:
        return before.windows.largest and item.activation.is_step
    return len(before.summands) == 1 or item.activation.is_step


def _without_dead(program: TrainingProgram) -> TrainingProgram:
    """The program without combinations that others have taken in."""
    alive: set[int] = set(program.outputs)
    for value in reversed(range(program.inputs + len(program.instructions))):
        item = program.of(value)
        if item is not None and (value in alive or isinstance(item, SparseConvolution)):
            alive |= {value, *item.operands}
    kept = [
        value
        for value in range(program.inputs + len(program.instructions))
        if value < program.inputs or value in alive
    ]
    numbers = {value: number for number, value in enumerate(kept)}
    instructions: list[Instruction] = []
    for value in kept[program.inputs :]:
        item = program.of(value)
        if isinstance(item, SparseConvolution):
            instructions.append(replace(item, source=numbers[item.source]))
        elif isinstance(item, Concatenation):
            instructions.append(Concatenation(tuple(numbers[source] for source in item.operands)))
        elif item is not None:
            summands = tuple(replace(s, source=numbers[s.source]) for s in item.summands)
            instructions.append(replace(item, summands=summands))
    outputs = tuple(numbers[value] for value in program.outputs)
    flat = tuple(numbers[value] for value in program.flat if value in numbers)
    return replace(program, instructions=tuple(instructions), outputs=outputs, flat=flat)
