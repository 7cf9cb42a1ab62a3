"""Fold batch normalisation into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import double, is_plain, layer_of, per_output, set_bias, sole_contractions
from sparsefx.passes.manager.pipeline import Outcome


@dataclass(frozen=True)
class FoldBatchNorm:
    """Multiply a layer's weight by the scale of a BatchNorm that is its only reader, and shift its bias.

    The semantics are those of evaluation, with the running statistics. Zeros of the weight stay exactly zero.
    A layer that is called twice or shares parameters, and a BatchNorm without running statistics, are left
    alone.
    """

    name = "fold_batchnorm"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Fold every pair that can be; the graph is edited in place."""
        pairs = [
            (node, layer, norm)
            for node, layer in sole_contractions(graph_module).items()
            if (norm := _sole_norm(graph_module, node)) is not None
        ]
        if pairs:
            # the channels of a BatchNorm are the second dimension: not those of a Linear on sequences,
            # nor those of a convolution without a batch
            values = analyses.program.node_values
            pairs = [pair for pair in pairs if len(values[pair[0]][0].shape) == _batched_rank(pair[1])]
        for node, layer, norm in pairs:
            _fold(layer, norm)
            (user,) = node.users
            user.replace_all_uses_with(node)
            graph_module.graph.erase_node(user)
        return Outcome(bool(pairs), f"{len(pairs)} folded")


def _batched_rank(layer: nn.Linear | _ConvNd) -> int:
    """Dimensions of a layer's result when its channels are the second one."""
    return 2 + (len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0)


def _sole_norm(graph_module: fx.GraphModule, node: fx.Node) -> _BatchNorm | None:
    """The BatchNorm with running statistics that alone reads a node."""
    readers = [layer_of(graph_module, user) for user in node.users]
    if len(readers) != 1 or not isinstance(readers[0], _BatchNorm) or not is_plain(readers[0]):
        return None
    return readers[0] if readers[0].running_mean is not None and not readers[0].training else None


@torch.no_grad()
def _fold(layer: nn.Linear | _ConvNd, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = (double(layer.bias, norm.running_mean) - norm.running_mean.double()) * scale
    bias = bias + double(norm.bias, bias)
    layer.weight.copy_(layer.weight.double() * per_output(layer, scale))
    set_bias(layer, bias)
