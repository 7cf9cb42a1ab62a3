"""Remove dead slices: cut parameters and buffers, and rewrite the sizes that depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.analysis.coupling import find_kept
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops import ConvolutionCall, is_known
from sparsefx.passes.analysis.shape_arguments import rewrite_literals, rewriter_of
from sparsefx.passes.analysis.sizes import Pin, find_pins
from sparsefx.passes.graph.layers import follow_weight, layer_of
from sparsefx.passes.graph.origins import duplicate, follow
from sparsefx.passes.graph.program import Program, Value
from sparsefx.passes.manager.pipeline import Outcome
from sparsefx.passes.running.compare import run
from sparsefx.passes.running.interpreter import Interpreter
from sparsefx.passes.running.leaves import tensors_in
from sparsefx.passes.running.timing import When, is_faster
from sparsefx.passes.running.untouched import untouched


@dataclass(frozen=True)
class Shrink:
    """Remove every slice that no output reads and that no coupling keeps.

    Attributes:
        align: round the widths of layers up to a multiple of this, with removable channels.
        round_groups: whether the groups of a convolution keep a convenient number of channels
            (:meth:`KeepSets.group_width`); ``"auto"`` where the graph then runs faster on this machine.
    """

    align: int = 1
    round_groups: When = "never"
    name = "shrink"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Cut the module in place."""
        program = analyses.program
        cutter = _Cutter(
            graph_module, program, analyses.live(program), find_pins(graph_module, program), self.align
        )
        if not cutter.cut(self.round_groups == "always"):
            return Outcome(False, cutter.failure)
        asked = self.round_groups == "auto" and cutter.has_groups
        rounded = asked and _is_faster_rounded(cutter, analyses.inputs[0])
        lines = [f"{cutter.removed} elements of parameters and buffers removed"]
        lines += ["groups keep convenient widths"] if rounded else []
        return Outcome(cutter.removed > 0, "; ".join([*lines, *_blockers(program, cutter.pins, cutter.live)]))


class _Cutter:
    """Cuts a graph, one way or another.

    The cut graph is run once on the example inputs: a node whose result has not the shape that the
    analysis expects (its sizes come from somewhere it cannot see) keeps all its channels, and the cut is
    made again.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        program: Program,
        live: Mapping[Value, Tensor],
        pins: dict[fx.Node, list[Pin]],
        align: int,
    ) -> None:
        self.graph_module, self.program, self.live, self.pins = graph_module, program, live, pins
        self.align = align
        self.failure = ""
        self._kept: KeepSets | None = None
        self._undo = ExitStack()

    @property
    def removed(self) -> int:
        """How many elements of parameters and buffers are cut off."""
        kept, constants = self._kept, self.program.constants
        if kept is None:
            return 0
        return sum(value.shape.numel() - kept.shape(value).numel() for value in constants)

    @property
    def has_groups(self) -> bool:
        """Whether a convolution that is cut has groups of several channels each."""
        convolutions = [call for call in self.program.calls if call.name == "convolution"]
        read = [ConvolutionCall.of(call) for call in convolutions]
        weights = [conv.weight for conv in read if conv.groups > 1 and conv.weight.shape[1] > 1]
        return self._kept is not None and not all(map(self._kept.is_full, weights))

    def cut(self, round_groups: bool) -> bool:
        """Cut the graph that is whole; False if it does not run then, and stays whole."""
        misfits: set[fx.Node] = set()
        while True:  # each turn but the last finds another node that does not fit
            pinned, program = _flat(self.pins), self.program
            kept = find_kept(program, self.live, pinned=pinned, align=self.align, round_groups=round_groups)
            self._undo = _cut(self.graph_module, program, kept)
            failed = _first_misfit(self.graph_module, program, kept)
            if failed is None:
                self._kept = kept
                return True
            self.restore()
            if failed in misfits:  # it keeps everything already, so the fault lies where we cannot see
                self.failure = f"nothing removed: {failed.name} does not run on what would be left"
                return False
            misfits.add(failed)
            self.pins.setdefault(failed, []).extend(_everything_at(program, failed))

    def restore(self) -> None:
        """Make the graph whole again."""
        self._undo.close()
        self.graph_module.recompile()
        self._kept = None


def _is_faster_rounded(cutter: _Cutter, example: tuple[Any, ...]) -> bool:
    """Cut with rounded groups instead, if the graph then runs faster; whether it does."""
    module, least = cutter.graph_module, duplicate(cutter.graph_module)
    cutter.restore()
    if cutter.cut(True) and is_faster(lambda: run(module, example), lambda: run(least, example)):
        return True
    cutter.restore()
    cutter.cut(False)
    return False


def _flat(pins: dict[fx.Node, list[Pin]]) -> list[Pin]:
    return [pin for found in pins.values() for pin in found]


def _everything_at(program: Program, node: fx.Node) -> list[Pin]:
    """Every value that a node reads or makes."""
    around = [n for n in (node, *node.all_input_nodes) if n in program.node_values]
    touched = [value for n in around for value in program.node_values[n]]
    touched += [value for call in program.calls_of(node) for value in (*call.inputs, *call.outputs)]
    return [(value, None) for value in touched]


@torch.no_grad()
def _cut(graph_module: fx.GraphModule, program: Program, kept: KeepSets) -> ExitStack:
    """Cut tensors, attributes and literal sizes to what is kept; closing the result undoes it."""
    undo = ExitStack()
    for value in program.constants:
        if not kept.is_full(value):
            _cut_constant(graph_module, value, kept, undo)
    for node in graph_module.graph.nodes:
        layer = layer_of(graph_module, node)
        if layer is not None and program.node_inputs[node] and program.node_values[node]:
            undo.callback(layer.__dict__.update, dict(layer.__dict__))
            sides = program.node_inputs[node][0], program.node_values[node][0]
            follow_weight(layer, *map(kept.shape, sides))
        elif rewriter_of(node) is not None:
            for field in ("op", "target", "args", "kwargs"):
                undo.callback(node.__setattr__, field, getattr(node, field))
            rewrite_literals(node, program, kept)
    graph_module.recompile()
    return undo


def _cut_constant(model: nn.Module, value: Value, kept: KeepSets, undo: ExitStack) -> None:
    """Cut a parameter or buffer under all its names, which keep sharing one tensor."""
    assert value.constant is not None
    tensor = kept.cut(value, value.constant)
    replacement: Tensor | None = None
    for name in value.names:
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        held: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
        old = held[attribute]
        undo.callback(held.__setitem__, attribute, old)
        if replacement is None:
            replacement = tensor
            if isinstance(old, nn.Parameter):
                replacement = nn.Parameter(tensor, old.requires_grad)
                follow(replacement, old, lambda labels: kept.cut(value, labels))
        held[attribute] = replacement


def _first_misfit(graph_module: fx.GraphModule, program: Program, kept: KeepSets) -> fx.Node | None:
    """The first node of the cut graph that fails or whose result is not of the expected shape."""
    replay = _Replay(graph_module, program, kept)
    try:
        with torch.no_grad(), untouched(graph_module, program.example) as inputs:
            replay.run(*inputs)
    except Exception:  # any operator may refuse a shape in its own way; the node then keeps everything
        if replay.node is None:
            raise
        return replay.node
    return None


class _Misfit(RuntimeError):
    """A result of the cut graph is not of the expected shape."""


class _Replay(Interpreter):
    def __init__(self, module: fx.GraphModule, program: Program, kept: KeepSets) -> None:
        super().__init__(module)
        self.program, self.kept = program, kept
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        result = super().run_node(n)
        for tensor, value in zip(tensors_in(result), self.program.node_values[n], strict=True):
            if tensor.shape != self.kept.shape(value):
                raise _Misfit(f"{n}: {tuple(tensor.shape)}, expected {tuple(self.kept.shape(value))}")
        return result


def _blockers(program: Program, pins: dict[fx.Node, list[Pin]], live: Mapping[Value, Tensor]) -> list[str]:
    """One line for each node that keeps dead channels because of what is not known of it."""
    lines = []
    unknown = {call.node: call.name for call in program.calls if call.inputs and not is_known(call)}
    for node in dict.fromkeys((*unknown, *pins)):
        pinned = set(pins.get(node, []))
        if node in unknown:
            pinned |= {(value, None) for call in program.calls_of(node) for value in call.outputs}
        dead = sum(_dead_channels(live[value], dim) for value, dim in pinned if value.constant is None)
        if dead:
            lines.append(f"{unknown.get(node, 'sizes')} at {node.name} keeps {dead} dead channels")
    return lines


def _dead_channels(elements: Tensor, pinned: int | None) -> int:
    """How many indices no output reads along the pinned dimension, or along any but the first."""
    if elements.dim() < 2 or not bool(elements.any()):
        return 0
    dims = range(1, elements.dim()) if pinned is None else [pinned]
    return max(int((~elements.movedim(dim, 0).flatten(1).any(1)).sum()) for dim in dims)
