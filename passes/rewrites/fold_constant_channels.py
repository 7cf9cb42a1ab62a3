"""Fold channels that do not vary into the layers that read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import double, is_evenly_padded, own_contractions, set_bias
from sparsefx.passes.manager.pipeline import Outcome


@dataclass(frozen=True)
class FoldConstantChannels:
    """Stop layers from reading input channels that are constant.

    An empty channel is not zero: it is its bias, then what normalisation and activation make of it.
    A layer that reads such a channel of value c takes ``W[:, i] * c`` into its bias, and its column
    becomes zero. **Into zero padding a constant is no longer constant after the convolution** (its
    border differs), so there all constant channels of a group merge into one *carrier* k, whose
    column becomes ``sum_i (c_i / c_k) W[:, i]``: exact at every image size. k is the largest in
    magnitude, so the factors are at most 1.
    """

    name = "fold_constant_channels"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Fold wherever a layer reads a constant channel; the layers are edited in place."""
        program = analyses.program
        facts = analyses.facts(program)
        folded = 0
        for layer, nodes in own_contractions(graph_module).items():
            dim = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
            sources = [program.node_inputs[node][0] for node in nodes]
            known = [facts[source].over(dim, source.shape[dim]) for source in sources]
            varies, value = known[0]
            for its_varies, its_value in known[1:]:  # a layer called twice: what all its calls agree on
                varies = varies | its_varies | (value != its_value)
            varies, value = (part.to(layer.weight.device) for part in (varies, value.masked_fill(varies, 0)))
            folded += _fold(layer, varies, value)
        return Outcome(folded > 0, f"{folded} input channels folded")


@torch.no_grad()
def _fold(layer: nn.Linear | _ConvNd, varies: Tensor, value: Tensor) -> int:
    """Fold one layer's constant input channels; returns how many columns changed."""
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    constant, values = ~varies.reshape(groups, -1), value.reshape(groups, -1).double()
    columns = _columns(layer, groups)
    read = constant & columns.ne(0).flatten(2).any(2)
    if not bool(read.any()):
        return 0
    folded = columns.double().masked_fill(~read[:, :, None, None], 0)
    if is_evenly_padded(layer):
        moved = torch.einsum("gi,giot->go", values, folded).flatten()
        if bool(moved.any()):
            set_bias(layer, double(layer.bias, moved) + moved)
    else:
        read = _merge(columns, folded, read, values)
    columns[read] = 0
    return int(read.sum())


def _merge(columns: Tensor, folded: Tensor, read: Tensor, values: Tensor) -> Tensor:
    """Merge each group's constant columns into its carrier's; returns those that are no longer needed.

    The carrier is chosen by the constants alone, so that all readers of a value agree on it.
    """
    carrier = values.abs().argmax(1, keepdim=True)
    greatest = values.gather(1, carrier)
    carries = torch.zeros_like(read).scatter(1, carrier, True)
    merging = read & (values != 0) & ~carries
    factors = torch.where(merging, values / greatest, 0)
    added = torch.einsum("gi,giot->got", factors, folded)[merging.any(1)]
    carries_more = carries & merging.any(1, keepdim=True)
    columns[carries_more] = (columns[carries_more].double() + added).to(columns.dtype)
    return read & (~carries | (greatest == 0))


def _columns(layer: nn.Linear | _ConvNd, groups: int) -> Tensor:
    """A view of a layer's weight as (groups, inputs, outputs, taps)."""
    weight = layer.weight.data
    taps = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    by_group = taps.view(groups, -1, *taps.shape[1:])
    return by_group if isinstance(layer, _ConvTransposeNd) else by_group.transpose(1, 2)
