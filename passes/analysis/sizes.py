"""Sizes in a graph: which literal ones can be rewritten, and what must stay whole because of the rest."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from sparsefx.passes.analysis.shape_arguments import cannot_follow, rewriter_of
from sparsefx.passes.graph.layers import CONTRACTIONS, is_plain, layer_of
from sparsefx.passes.graph.partial_layer_norm import PartialLayerNorm
from sparsefx.passes.graph.program import Program, Value
from sparsefx.passes.graph.recorder import is_reshape

Pin = tuple[Value, int | None]

# Layers whose tensors may be cut: their attributes are made to follow, or play no part in forward.
_CUTTABLE = (*CONTRACTIONS, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Embedding, PartialLayerNorm)

# Operations that take their sizes from arguments, so that a graph or a module may hold them literally.
_SIZED = frozenset(
    {"view", "_unsafe_view", "expand", "slice", "select", "split", "split_with_sizes", "native_group_norm"}
)

# Torch's own functions that run a sized operation with sizes they read off their operands.
_SIZE_FREE = frozenset({
    torch.flatten, torch.squeeze, torch.unsqueeze, torch.matmul, torch.stack, torch.mean,
    torch.repeat_interleave, operator.matmul, F.linear, F.scaled_dot_product_attention,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    "flatten", "squeeze", "unsqueeze", "matmul", "mean", "repeat_interleave",
})  # fmt: skip

_INTEGER_ARITHMETIC = frozenset(
    {operator.mul, operator.floordiv, operator.add, operator.sub, operator.getitem}
)


def find_pins(graph_module: fx.GraphModule, program: Program) -> dict[fx.Node, list[Pin]]:
    """What must stay full because a size that no pass can rewrite depends on it, by the node of that size."""
    pins: dict[fx.Node, list[Pin]] = {}
    for node in graph_module.graph.nodes:
        found = [*_literal_sizes(graph_module, program, node), *_sizes_used_as_numbers(program, node)]
        if found:
            pins[node] = found
    unnamed = [value for value in program.constants if not value.names]
    for call in program.calls:
        pins.setdefault(call.node, []).extend((v, None) for v in call.inputs if v in unnamed)
    return {node: found for node, found in pins.items() if found}


def _literal_sizes(graph_module: fx.GraphModule, program: Program, node: fx.Node) -> Iterator[Pin]:
    calls = program.calls_of(node)
    layer = layer_of(graph_module, node)
    if layer is None:
        if rewriter_of(node) is not None and not (is_reshape(node) and _is_ambiguous(program, node)):
            source = program.node_inputs[node][0] if program.node_inputs[node] else None
            if source is not None and calls:
                yield from ((source, dim) for dim in cannot_follow(node, source))
            return
        free = node.target in _SIZE_FREE or not any(_integers(node))
        blocked = [] if free else [call for call in calls if call.name in _SIZED]
    elif isinstance(layer, _CUTTABLE) and is_plain(layer):
        blocked = []
    elif any(True for _ in layer.parameters()) or any(True for _ in layer.buffers()):
        blocked = calls
    else:
        blocked = [] if isinstance(layer, nn.Flatten) else [call for call in calls if call.name in _SIZED]
    for call in blocked:
        yield from ((value, None) for value in (*call.inputs, *call.outputs))


def _integers(node: fx.Node) -> list[int]:
    """The literal integers among a node's arguments that may be sizes."""
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    slices = [bound for leaf in leaves if isinstance(leaf, slice) for bound in (leaf.start, leaf.stop)]
    return [
        leaf
        for leaf in (*leaves, *slices)
        if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf > 1
    ]


def _is_ambiguous(program: Program, node: fx.Node) -> bool:
    """Whether a reshape may do otherwise at another size: what is 1 now may then mix with channels.

    To flatten all but the batch is the same at every size that the layer after it accepts.
    """
    source, result = program.node_inputs[node][0], program.node_values[node][0]
    flattens = len(result.shape) == 2 and result.shape[0] == source.shape[0]
    return not flattens and any(source.shape[dim] == 1 for dim in source.varying)


def _sizes_used_as_numbers(program: Program, node: fx.Node) -> Iterator[Pin]:
    """Dimensions whose size reaches anything but a reshape: a scale, a count, a new tensor."""
    if not _reads_shape(node) or not isinstance(node.args[0], fx.Node):
        return
    if len(program.node_values[node.args[0]]) != 1:
        return
    (value,) = program.node_values[node.args[0]]
    if node.op == "call_method" and node.target in ("size", "dim", "numel") and len(node.args) > 1:
        readings = [(node, node.args[1])]
    else:
        readings = [(user, user.args[1]) for user in node.users if user.target is operator.getitem]
        readings += [(user, None) for user in node.users if user.target is not operator.getitem]
    for reader, dim in readings:
        if not _only_reshapes(reader):
            yield value, dim if isinstance(dim, int) else None


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "numel")
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.target in (len, torch.numel)


def _only_reshapes(node: fx.Node) -> bool:
    """Whether an integer ends only in the sizes of reshapes, through integer arithmetic at most."""
    for user in node.users:
        if is_reshape(user) and user.args[0] is not node:
            continue
        if user.target not in _INTEGER_ARITHMETIC or not _only_reshapes(user):
            return False
    return True
