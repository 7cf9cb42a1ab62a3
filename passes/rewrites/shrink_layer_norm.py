"""Remove channels of layer normalisation: its statistics keep the share of the constant ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import is_plain, layer_of, replace_layer
from sparsefx.passes.graph.partial_layer_norm import PartialLayerNorm
from sparsefx.passes.manager.pipeline import Outcome

_WORTH = 8  # one of so many channels must go before a fused norm is given up


@dataclass(frozen=True)
class ShrinkLayerNorm:
    """Replace layer norms that read constant channels whose results no node reads.

    A norm needs every channel for its mean and variance. But a constant channel adds a constant to them,
    which need not be computed from the channel. This only pays if many channels go, because torch's own norm
    is one fused operation.
    """

    name = "shrink_layer_norm"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Replace the layers in place."""
        opened = 0
        # What one norm no longer reads, another need not make. Each turn but the last leaves fewer norms.
        while found := _open(graph_module, analyses):
            opened += found
        return Outcome(opened > 0, f"{opened} opened")


def _open(graph_module: fx.GraphModule, analyses: Analyses) -> int:
    norms = {node: layer for node in graph_module.graph.nodes if (layer := _norm(graph_module, node))}
    called = [str(node.target) for node in norms]
    norms = {node: norm for node, norm in norms.items() if called.count(str(node.target)) == 1}
    if not norms:
        return 0
    program = analyses.program
    facts, live = analyses.facts(program), analyses.live(program)
    opened = 0
    for node, norm in norms.items():
        (source,), (result,) = program.node_inputs[node], program.node_values[node]
        varies, value = facts[source].over(-1, source.shape[-1])
        read = live[result].flatten(0, -2).any(0).expand(result.shape[-1])
        constant = ~varies & ~read
        if int(constant.sum()) * _WORTH >= len(constant):
            partial = PartialLayerNorm(norm, constant, value).train(graph_module.training)
            replace_layer(graph_module, node, partial)
            opened += 1
    return opened


def _norm(graph_module: fx.GraphModule, node: fx.Node) -> nn.LayerNorm | None:
    layer = layer_of(graph_module, node)
    if not isinstance(layer, nn.LayerNorm) or not is_plain(layer) or len(layer.normalized_shape) != 1:
        return None
    return layer
