"""Let layer normalisation lose channels: its statistics keep what the constant ones contribute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx.passes.analysis.facts import facts_of, live_of
from sparsefx.passes.graph.layers import is_plain, layer_of, replace_layer
from sparsefx.passes.graph.record import record
from sparsefx.passes.manager.pipeline import Outcome
from sparsefx.passes.running.examples import Inputs

_WORTH = 8  # one of so many channels must go before a fused norm is given up


class PartialLayerNorm(nn.Module):
    """Layer normalisation over the last dimension, some of whose channels are only known constants.

    Mean and variance are those over all ``size`` channels of the original. Those that are still there
    are marked in ``counted``; the others add ``total`` to the sum and ``squares`` to the sum of squares.

    Args:
        norm: the layer it replaces.
        constant: bool (channels,), the channels to count as constants.
        value: (channels,) their values.
    """

    counted: Tensor

    def __init__(self, norm: nn.LayerNorm, constant: Tensor, value: Tensor) -> None:
        super().__init__()
        self.size, self.eps = norm.normalized_shape[0], norm.eps
        self.missing = int(constant.sum())
        self.total = float(value[constant].double().sum())
        self.squares = float(value[constant].double().square().sum())
        like = norm.weight if norm.weight is not None else value
        self.register_buffer("counted", (~constant).to(like)[:, None])
        self.weight, self.bias = norm.weight, norm.bias

    @classmethod
    def of_attributes(cls, values: Mapping[str, Any]) -> PartialLayerNorm:
        """A layer without tensors, from its other attributes by name."""
        norm = cls.__new__(cls)
        nn.Module.__init__(norm)
        norm.size, norm.missing = int(values["size"]), int(values["missing"])
        norm.eps, norm.total, norm.squares = (float(values[name]) for name in ("eps", "total", "squares"))
        norm.register_buffer("counted", torch.empty(0, device="meta"))
        norm.weight = norm.bias = nn.Parameter(torch.empty(0, device="meta"))
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., channels)."""
        mean = (x.matmul(self.counted) + self.total) / self.size
        centred = x - mean
        squares = centred.square().matmul(self.counted)
        missing = self.squares - 2 * mean * self.total + self.missing * mean.square()
        result = centred * torch.rsqrt((squares + missing) / self.size + self.eps)
        result = result if self.weight is None else result * self.weight
        return result if self.bias is None else result + self.bias


@dataclass(frozen=True)
class OpenNorms:
    """Replace layer norms that read constant channels whose results nobody reads.

    A norm needs every channel for its mean and variance; but what a constant one adds to them is a
    constant too, and need not be computed from it. It only pays where a good part of the channels goes,
    since torch's own norm is one fused operation.
    """

    name = "open_norms"

    def run(self, graph_module: fx.GraphModule, inputs: Inputs) -> Outcome:
        """Replace the layers in place."""
        opened = 0
        # What one norm no longer reads, another need not make. Each turn but the last leaves fewer norms.
        while found := _open(graph_module, inputs):
            opened += found
        return Outcome(opened > 0, f"{opened} opened")


def _open(graph_module: fx.GraphModule, inputs: Inputs) -> int:
    norms = {node: layer for node in graph_module.graph.nodes if (layer := _norm(graph_module, node))}
    called = [str(node.target) for node in norms]
    norms = {node: norm for node, norm in norms.items() if called.count(str(node.target)) == 1}
    if not norms:
        return 0
    program = record(graph_module, inputs)
    facts, live = facts_of(program), live_of(program)
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
