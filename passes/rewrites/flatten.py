"""Name flattening as such: written as a reshape it reads a size of the tensor, and so keeps the tensor."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import erase_unused
from sparsefx.passes.graph.recorder import is_reshape
from sparsefx.passes.manager.pipeline import Outcome


@dataclass(frozen=True)
class NameFlatten:
    """Turn ``x.view(x.size(0), -1)`` into ``torch.flatten(x, 1)``."""

    name = "name_flatten"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the reshapes in place."""
        nodes = [node for node in graph_module.graph.nodes if _keeps_first(node)]
        program = analyses.program if nodes else None
        nodes = [node for node in nodes if program and len(program.node_inputs[node][0].shape) > 1]
        for node in nodes:
            sizes = [read for read in node.all_input_nodes if read is not node.args[0]]
            node.op, node.target = "call_function", torch.flatten
            node.args, node.kwargs = (node.args[0], 1), {}
            erase_unused(graph_module.graph, [*sizes, *(size.args[0] for size in sizes)])
        graph_module.recompile()
        return Outcome(bool(nodes), f"{len(nodes)} named")


def _keeps_first(node: fx.Node) -> bool:
    """Whether a node reshapes a tensor to its own first size and whatever is left.

    That of another tensor may be another one at other sizes of the input, even where all examples agree.
    """
    if not is_reshape(node) or not isinstance(node.args[0], fx.Node):
        return False
    sizes: Any = node.args[1:] or (node.kwargs["shape"],)
    sizes = sizes[0] if isinstance(sizes[0], (tuple, list)) else sizes
    if len(sizes) != 2 or sizes[1] != -1 or not isinstance(sizes[0], fx.Node):
        return False
    return _read_first(sizes[0]) is node.args[0]


def _read_first(node: fx.Node) -> fx.Node | None:
    """The tensor that ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]`` is read off."""
    read: Any = node.args[0] if node.args else None
    if not isinstance(read, fx.Node) or node.kwargs:
        return None
    if node.target == "size":
        return read if node.args[1:] == (0,) else None
    if node.target is not operator.getitem or node.args[1] != 0 or read.kwargs:
        return None
    whole = (read.target == "size" and len(read.args) == 1) or (
        read.target is getattr and read.args[1] == "shape"
    )
    return read.args[0] if whole and isinstance(read.args[0], fx.Node) else None
