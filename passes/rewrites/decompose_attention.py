"""Write attention as layers and one ``scaled_dot_product_attention``, so that the graph shows every size."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import is_plain, layer_of, replace_layer
from sparsefx.passes.graph.modes import ByMode
from sparsefx.passes.graph.origins import rows_of
from sparsefx.passes.graph.program import Program
from sparsefx.passes.manager.pipeline import Outcome


@dataclass(frozen=True)
class DecomposeAttention:
    """Split ``nn.MultiheadAttention`` into layers, and write the scale of each attention explicitly.

    A layer becomes the projections of queries, keys and values, the attention between them and the
    output projection, so that dimensions and whole heads can be removed. One whose weights are
    returned, or that adds keys of its own, stays as it is. ``scaled_dot_product_attention`` without a
    scale divides by the root of the head's width, which must stay that of the original.

    Attributes:
        trains: keep a layer's dropout, which acts in training only.
    """

    trains: bool = False
    name = "decompose_attention"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the graph in place."""
        nodes = list(graph_module.graph.nodes)
        layers = [node for node in nodes if isinstance(layer_of(graph_module, node), nn.MultiheadAttention)]
        attentions = [
            node for node in nodes if node.target is F.scaled_dot_product_attention and _unscaled(node)
        ]
        if not layers and not attentions:
            return Outcome(False, "0 opened")
        program = analyses.program
        attentions = [node for node in attentions if _has_fixed_width(program, node)]
        for node in attentions:
            node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(program.node_inputs[node][0].shape[-1])}
        calls = Counter(str(node.target) for node in nodes)
        opened = [
            node
            for node in layers
            if calls[str(node.target)] == 1 and _open(graph_module, program, node, self.trains)
        ]
        return Outcome(bool(opened or attentions), f"{len(opened)} opened, {len(attentions)} scales stated")


def _unscaled(node: fx.Node) -> bool:
    return node.kwargs.get("scale") is None and len(node.args) < 7


def _has_fixed_width(program: Program, attention: fx.Node) -> bool:
    """Whether the width of the queries is fixed; in attention between channels it follows the input."""
    query = program.node_inputs[attention][0]
    return len(query.shape) - 1 not in query.varying


def _open(graph_module: fx.GraphModule, program: Program, node: fx.Node, trains: bool) -> bool:
    """Replace one call; False where it does more than plain attention."""
    layer = layer_of(graph_module, node)
    assert isinstance(layer, nn.MultiheadAttention)
    call = _Call.of(node)
    if not _is_simple(layer, call, program):
        return False
    name = str(node.target)
    opened = _projections(layer)
    if trains and layer.dropout:
        opened.add_module("dropout_p", ByMode(layer.dropout, 0.0).train(layer.training))
    replace_layer(graph_module, node, opened)
    with graph_module.graph.inserting_before(node):
        output = _attend(graph_module.graph, name, layer, call, trains)
    for user in list(node.users):
        user.replace_all_uses_with(output)
        graph_module.graph.erase_node(user)
    graph_module.graph.erase_node(node)
    return True


@dataclass(frozen=True)
class _Call:
    """The arguments of a call of ``nn.MultiheadAttention``."""

    node: fx.Node
    query: Any
    key: Any
    value: Any
    key_padding_mask: Any = None
    need_weights: Any = True
    attn_mask: Any = None
    average_attn_weights: Any = True
    is_causal: Any = False

    @classmethod
    def of(cls, node: fx.Node) -> _Call:
        arguments: Any = (node.args, node.kwargs)
        return cls(node, *arguments[0], **arguments[1])


def _is_simple(layer: nn.MultiheadAttention, call: _Call, program: Program) -> bool:
    if layer._forward_hooks or layer._forward_pre_hooks or type(layer) is not nn.MultiheadAttention:
        return False
    if layer.bias_k is not None or layer.add_zero_attn or not is_plain(layer.out_proj):
        return False
    if len(program.node_inputs[call.node][0].shape) != 3 or (call.is_causal and call.attn_mask is None):
        return False
    return all(user.args[1:] == (0,) or not user.users for user in call.node.users)


def _projections(layer: nn.MultiheadAttention) -> nn.Module:
    """A module with the layer's four projections."""
    result = nn.Module()
    thirds = torch.arange(3 * layer.embed_dim).chunk(3)
    for name, third in zip(("q_proj", "k_proj", "v_proj"), thirds, strict=True):
        if layer._qkv_same_embed_dim:
            weight = rows_of(layer.in_proj_weight, third)
        else:
            weight = layer.get_parameter(f"{name}_weight")
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        projection.weight = weight
        if layer.in_proj_bias is not None:
            projection.bias = rows_of(layer.in_proj_bias, third)
        result.add_module(name, projection)
    result.add_module("out_proj", layer.out_proj)
    return result.train(layer.training)


def _attend(graph: fx.Graph, name: str, layer: nn.MultiheadAttention, call: _Call, trains: bool) -> fx.Node:
    heads = (layer.num_heads, layer.head_dim)
    to_heads = (0, 2, 1, 3) if layer.batch_first else (1, 2, 0, 3)
    from_heads = (0, 2, 1, 3) if layer.batch_first else (2, 0, 1, 3)
    operands = []
    for projection, source in (("q_proj", call.query), ("k_proj", call.key), ("v_proj", call.value)):
        projected = graph.call_module(f"{name}.{projection}", (source,))
        operands.append(
            graph.call_method("permute", (graph.call_method("unflatten", (projected, -1, heads)), *to_heads))
        )
    options: dict[str, Any] = {"scale": 1 / math.sqrt(layer.head_dim)}
    if call.attn_mask is not None or call.key_padding_mask is not None:
        masks = (call.attn_mask, call.key_padding_mask, operands[0])
        options["attn_mask"] = graph.call_function(attention_mask, masks)
    if trains and layer.dropout:
        options["dropout_p"] = graph.call_module(f"{name}.dropout_p")
    attended = graph.call_function(F.scaled_dot_product_attention, tuple(operands), options)
    merged = graph.call_method("flatten", (graph.call_method("permute", (attended, *from_heads)), -2))
    return graph.call_module(f"{name}.out_proj", (merged,))


def attention_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor:
    """The two masks of ``nn.MultiheadAttention`` as one that is added to the scores.

    Args:
        attn_mask: (L, S) or (batch * heads, L, S); True, or a number to add, where attention is barred.
        key_padding_mask: (batch, S), of the same kind.
        query: (batch, heads, L, width), for its batch and data type.
    """
    parts = []
    if attn_mask is not None:
        added = _added(attn_mask, query)
        parts.append(added if added.dim() == 2 else added.unflatten(0, (query.shape[0], -1)))
    if key_padding_mask is not None:
        parts.append(_added(key_padding_mask, query)[:, None, None, :])
    return sum(parts[1:], parts[0])


def _added(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(query.dtype)
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
