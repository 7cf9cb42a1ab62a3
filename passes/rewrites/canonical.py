"""Bring a graph into the form the other passes expect: layers as modules, no layer without effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import drop_unread, erase_unused, is_plain, layer_of
from sparsefx.passes.graph.origins import follow
from sparsefx.passes.manager.pipeline import Outcome

_DROPOUT_FUNCTIONS = frozenset({
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
})  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class RemoveIdentities:
    """Remove ``nn.Identity`` and dropout, which return their input in evaluation.

    Attributes:
        dropout: whether to remove dropout too; a model that will be trained needs it.
    """

    dropout: bool = True
    name = "remove_identities"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Remove them from the graph, in place."""
        removed = 0
        kinds = (nn.Identity, *_DROPOUTS) if self.dropout else (nn.Identity,)
        for node in list(graph_module.graph.nodes):
            layer = layer_of(graph_module, node)
            module = isinstance(layer, kinds) and _hands_on(layer) and len(node.args) == 1
            if module or (self.dropout and _drops_nothing(node)):
                node.replace_all_uses_with(node.args[0])
                graph_module.graph.erase_node(node)
                removed += 1
        return Outcome(removed > 0, f"{removed} removed")


def _drops_nothing(node: fx.Node) -> bool:
    """Whether a node is ``F.dropout(x, p, False)``, or another dropout called as a function."""
    if node.op != "call_function" or node.target not in _DROPOUT_FUNCTIONS or not node.args:
        return False
    training = dict(zip(("p", "training", "inplace"), node.args[1:], strict=False)) | node.kwargs
    return training.get("training", True) is False


def _hands_on(layer: nn.Module) -> bool:
    return is_plain(layer) and not layer.training


@dataclass(frozen=True)
class FunctionalToModules:
    """Turn ``F.linear``, ``F.convNd``, ``F.layer_norm``, ``F.group_norm`` and ``addmm`` into layers."""

    name = "functional_to_modules"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the calls on parameters in place; every other argument must be a literal."""
        converted = 0
        for node in list(graph_module.graph.nodes):
            layer = _as_layer(graph_module, node)
            if layer is None:
                continue
            name = f"{node.name}_layer"
            while hasattr(graph_module, name):  # at most once an attribute that there is
                name += "_"
            graph_module.add_submodule(name, layer)
            with graph_module.graph.inserting_before(node):
                source = node.args[node.target is torch.addmm] if node.args else node.kwargs["input"]
                call = graph_module.graph.call_module(name, (source,))
            node.replace_all_uses_with(call)
            _erase_with_parameters(graph_module, node)
            converted += 1
        return Outcome(converted > 0, f"{converted} converted")


_CONVOLUTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{
        getattr(F, f"conv{n}d"): (getattr(nn, f"Conv{n}d"), ("stride", "padding", "dilation", "groups"))
        for n in (1, 2, 3)
    },
    **{
        getattr(F, f"conv_transpose{n}d"): (
            getattr(nn, f"ConvTranspose{n}d"),
            ("stride", "padding", "output_padding", "groups", "dilation"),
        )
        for n in (1, 2, 3)
    },
}


_NORMS: dict[Any, tuple[str, ...]] = {
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
}


def _erase_with_parameters(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Erase a node with its reads of parameters that no other node needs, and these parameters."""
    reads = [read for read in node.all_input_nodes if read.op == "get_attr"]
    graph_module.graph.erase_node(node)
    erase_unused(graph_module.graph, reads)
    drop_unread(graph_module, {str(read.target) for read in reads})  # the layer holds it now


def _as_layer(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that computes what a functional call does; None where there is none."""
    if node.target is torch.addmm:
        return _addmm_as_layer(graph_module, node)
    if node.op != "call_function" or node.target not in (F.linear, *_NORMS, *_CONVOLUTIONS):
        return None
    names = ("input", "weight", "bias", *(_CONVOLUTIONS.get(node.target, (None, ()))[1]))
    names = _NORMS.get(node.target, names)
    arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    arguments.pop("input", None)
    weight = _parameter(graph_module, arguments.pop("weight", None))
    bias_argument = arguments.pop("bias", None)
    bias = _parameter(graph_module, bias_argument)
    if weight is None or (bias is None) != (bias_argument is None):
        return None
    if any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(arguments)):
        return None
    if (weight.dim() < 2) != (node.target in _NORMS) or weight.is_complex():
        return None
    layer: nn.Module = _empty_layer(node.target, weight, arguments)
    layer._parameters.update(weight=weight, bias=bias)
    layer.train(graph_module.training)
    return layer


def _addmm_as_layer(graph_module: fx.GraphModule, node: fx.Node) -> nn.Linear | None:
    """``addmm(bias, x, weight)``, as in GPT-2, whose weights are (inputs, outputs)."""
    if node.kwargs or len(node.args) != 3:
        return None
    bias, weight = (_parameter(graph_module, node.args[place]) for place in (0, 2))
    if bias is None or weight is None or bias.shape != weight.shape[1:] or weight.is_complex():
        return None
    held = [parameter for _, parameter in graph_module.named_parameters(remove_duplicate=False)]
    if sum(parameter is weight for parameter in held) > 1:  # tied: it has to stay one tensor
        return None
    layer = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
    layer.bias = bias
    turned = nn.Parameter(weight.detach().t().contiguous(), weight.requires_grad)
    layer.weight = follow(turned, weight, lambda labels: labels.t())
    return layer.train(graph_module.training)


def _empty_layer(target: Any, weight: nn.Parameter, arguments: dict[str, Any]) -> Any:
    """A layer of the right kind and sizes, without storage: its parameters are replaced."""
    if target is F.layer_norm:
        return nn.LayerNorm(**arguments, device="meta")
    if target is F.group_norm:
        return nn.GroupNorm(num_channels=len(weight), **arguments, device="meta")
    if target is F.linear:
        return nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    kind, _ = _CONVOLUTIONS[target]
    groups = arguments.get("groups", 1)
    channels = (weight.shape[1] * groups, weight.shape[0])
    if target.__name__.startswith("conv_transpose"):
        channels = (weight.shape[0], weight.shape[1] * groups)
    return kind(*channels, tuple(weight.shape[2:]), bias=False, device="meta", **arguments)


def _parameter(graph_module: fx.GraphModule, node: Any) -> nn.Parameter | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    path, _, name = str(node.target).rpartition(".")
    found = graph_module.get_submodule(path)._parameters.get(name)
    return found if isinstance(found, nn.Parameter) else None
