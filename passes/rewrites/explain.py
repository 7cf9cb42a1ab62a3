"""Report why channels that compute nothing, or that nothing uses, were kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.analysis.coupling import find_kept
from sparsefx.passes.analysis.domains.keep_sets import READ, KeepSets
from sparsefx.passes.analysis.ops import ConvolutionCall, operation_of
from sparsefx.passes.analysis.ops.batch_norm import BatchNorm
from sparsefx.passes.analysis.ops.elementwise import Elementwise
from sparsefx.passes.analysis.ops.movement import Permute, View
from sparsefx.passes.analysis.ops.reduction import Mix
from sparsefx.passes.analysis.sizes import find_pins
from sparsefx.passes.capture.module_tracer import reason_of
from sparsefx.passes.graph.layers import CONTRACTIONS, layer_of, own_contractions, why_not_plain
from sparsefx.passes.graph.program import Call, Program, Value
from sparsefx.passes.manager.pipeline import REPORT_IT, KeptChannels, Outcome

_SELECTIVE = frozenset({"convolution", "addmm", "mm", "index_select"})


@dataclass(frozen=True)
class Explain:
    """Report what keeps the remaining empty channels; the graph does not change.

    A channel is empty where all its weights in a layer are 0. The reason is the first thing on its way
    through activations, norms and pooling that does not go channel by channel: an addition to a residual
    stream, another layer, a reshape, an output.
    """

    name = "explain"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Read the graph, if a layer has empty channels."""
        try:
            return _explain(graph_module, analyses)
        except Exception as error:  # no model may stay whole because of what is only said about it
            return Outcome(False, f"failed ({reason_of(error)}); {REPORT_IT}")


def _explain(graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
    sites = [
        (node, side, empty)
        for layer, nodes in own_contractions(graph_module).items()
        for side, empty in _empty(layer)
        for node in nodes[:1]
    ]
    uneditable = _uneditable(graph_module)
    if not sites and not uneditable:
        return Outcome(False, "no empty channel is left")
    found = uneditable + (_traced(graph_module, analyses, sites) if sites else [])
    return Outcome(False, f"{sum(one.count for one in found)} empty channels are left", tuple(found))


def _uneditable(graph_module: fx.GraphModule) -> list[KeptChannels]:
    """The empty channels of layers that no pass may edit."""
    called = {str(node.target): layer_of(graph_module, node) for node in graph_module.graph.nodes}
    reasons = {
        name: why_not_plain(layer) for name, layer in called.items() if isinstance(layer, CONTRACTIONS)
    }
    return [
        KeptChannels(name, side, len(empty), reason)
        for name, reason in reasons.items()
        if reason is not None
        for side, empty in _empty(cast("nn.Linear | _ConvNd", called[name]))
    ]


def _traced(
    graph_module: fx.GraphModule, analyses: Analyses, sites: list[tuple[fx.Node, str, Tensor]]
) -> list[KeptChannels]:
    program = analyses.program_of_first  # widths follow no size of the input
    pins = [pin for found in find_pins(graph_module, program).values() for pin in found]
    kept = find_kept(program, analyses.live(program), pinned=pins)
    search = _Search(program, kept)
    return [
        KeptChannels(str(node.target), side, count, reason)
        for node, side, empty in sites
        for reason, count in search.reasons(node, side, empty).items()
    ]


def _empty(layer: nn.Linear | _ConvNd) -> list[tuple[str, Tensor]]:
    """The sides of a layer that have empty channels, with their indices."""
    used = layer.weight.detach().ne(0)
    transposed, whole = isinstance(layer, _ConvTransposeNd), getattr(layer, "groups", 1) == 1
    sides = ["input", "output"] if transposed else ["output", "input"]
    dims = list(enumerate(sides))[: 2 if whole else 1]  # the other one is counted anew in each group
    found = [(side, (~used.transpose(0, dim).flatten(1).any(1)).nonzero().flatten()) for dim, side in dims]
    return [(side, empty) for side, empty in found if len(empty)]


class _Search:
    """Follows a channel from value to value to what keeps it."""

    def __init__(self, program: Program, kept: KeepSets) -> None:
        self._program, self._kept = program, kept
        self._readers: dict[Value, list[Call]] = {}
        for call in program.calls:
            for value in dict.fromkeys(call.inputs):
                self._readers.setdefault(value, []).append(call)

    def reasons(self, node: fx.Node, side: str, empty: Tensor) -> Counter[str]:
        """How many of a layer's empty channels each reason keeps."""
        values = self._program.node_inputs if side == "input" else self._program.node_values
        if not values.get(node):
            return Counter({"the graph does not call the layer on a tensor": len(empty)})
        value = values[node][0]
        dim = self._channels(node)
        return Counter(self._reason(node, value, dim, int(index)) for index in empty)

    def _channels(self, node: fx.Node) -> int:
        """The dimension of a layer's channels, from the back."""
        convolutions = [call for call in self._program.calls_of(node) if call.name == "convolution"]
        return 1 - len(convolutions[0].inputs[1].shape) if convolutions else -1

    def _reason(self, layer: fx.Node, value: Value, dim: int, index: int) -> str:
        seen = set()
        while value not in seen:  # each value once
            seen.add(value)
            cause = self._kept.cause(value, dim, index)
            if cause is READ:
                cause = self._reader(layer, value)
                if cause is None:
                    returned = value in self._program.outputs
                    return "the model returns them" if returned else "the layer's own sums need them"
                verb = "reads them"
            elif isinstance(cause, Call):
                verb = "keeps them together with others"
            else:
                return str(cause)
            following = _beyond(cause, value, dim)
            if following is None and int(self._kept.of(value, dim).sum()) == 1:
                return "a layer has at least one channel"
            if following is None:
                return f"{cause.name} at {cause.node.name} {verb}"
            value, dim = following
        return "what they are tied to is needed"

    def _reader(self, layer: fx.Node, value: Value) -> Call | None:
        """A call that reads the value; rather one that reads all of it than another layer."""
        readers = [call for call in self._readers.get(value, []) if call.node is not layer]
        return min(readers, key=lambda call: call.name in _SELECTIVE, default=None)


def _beyond(call: Call, value: Value, dim: int) -> tuple[Value, int] | None:
    """The value on the other side of a call that goes channel by channel, and its dimension there."""
    operation = operation_of(call)
    sources = [one for one in call.inputs if one.constant is None]
    if len(sources) != 1 or not call.outputs:
        return None
    source, result = sources[0], call.outputs[0]
    other = result if value is source else source
    if call.name == "convolution":
        return (other, dim) if _is_depthwise(call) else None
    if isinstance(operation, Permute):
        return other, _permuted(call, source, dim, forward=value is source)
    if isinstance(operation, View):
        return (other, dim) if dim == -1 and source.shape[-1] == result.shape[-1] else None
    if len(source.shape) != len(result.shape) or dim + len(source.shape) < 0:
        return None
    mixed = isinstance(operation, Mix) and dim + len(source.shape) in operation.mixed(call)
    passes = isinstance(operation, (Elementwise, BatchNorm, Mix)) and not mixed
    return (other, dim) if passes else None


def _permuted(call: Call, source: Value, dim: int, *, forward: bool) -> int:
    """Where a dimension of the operand is in the result, or the other way; from the back."""
    rank = len(source.shape)
    distinct = torch.empty(tuple(range(1, rank + 1)), device="meta")  # a size tells which dimension it is
    sizes = list(call.run([distinct])[0].shape)
    return (sizes.index(dim + rank + 1) if forward else sizes[dim] - 1) - rank


def _is_depthwise(call: Call) -> bool:
    convolution = ConvolutionCall.of(call)
    return convolution.groups == convolution.weight.shape[0] == convolution.input.shape[1]
