"""The layers that the rewriting passes know how to edit, and how a layer's attributes follow its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

CONTRACTIONS = (nn.Linear, _ConvNd)


def is_plain(module: nn.Module | None) -> bool:
    """Whether a module computes just what its torch class does, from parameters of its own.

    A subclass with a forward of its own, a hook, a parametrization or torch.jit may do anything with the
    weight, so such a layer is never edited.
    """
    return module is not None and why_not_plain(module) is None


def why_not_plain(module: nn.Module) -> str | None:
    """Why a module may compute something else than its torch class does; None if it does not."""
    if isinstance(module, torch.jit.ScriptModule):
        return "torch.jit compiled it"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has a hook, which may do anything; remove it before the export"
    if not all(_is_torchs_own(module, method) for method in ("forward", "_conv_forward")):
        return "its class has a forward of its own"
    if not isinstance(module, CONTRACTIONS):
        return None
    weight = module._parameters.get("weight")
    if weight is None:
        return (
            "its weight is computed at each call, by a parametrization; before the export, "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') computes it for good"
        )
    return "its weight is complex" if weight.is_complex() else None


def _is_torchs_own(module: nn.Module, method: str) -> bool:
    """Whether torch or a pass, not a user's subclass, defines a method; also where there is none."""
    defined = getattr(type(module), method, None)
    return defined is None or defined.__module__.startswith(("torch.nn.modules.", "sparsefx.passes."))


def layer_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a ``call_module`` node calls; None for any other node."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def replace_layer(graph_module: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    """Put another module in the place of the one that a node calls."""
    path, _, attribute = str(node.target).rpartition(".")
    graph_module.get_submodule(path)._modules[attribute] = layer


def sole_contractions(graph_module: fx.GraphModule) -> dict[fx.Node, nn.Linear | _ConvNd]:
    """The nodes whose Linear or Conv layer is called nowhere else and shares no parameter.

    Only these may have their weights rewritten: what one call needs would be wrong for the other.
    """
    return {nodes[0]: layer for layer, nodes in own_contractions(graph_module).items() if len(nodes) == 1}


def own_contractions(graph_module: fx.GraphModule) -> dict[nn.Linear | _ConvNd, list[fx.Node]]:
    """The Linear and Conv layers that share no parameter, with the nodes that call each."""
    nodes = graph_module.graph.nodes
    read = {str(node.target) for node in nodes if node.op == "get_attr"}
    holders = Counter(id(p) for _, p in graph_module.named_parameters(remove_duplicate=False))
    found: dict[nn.Linear | _ConvNd, list[fx.Node]] = {}
    for node in nodes:
        layer = layer_of(graph_module, node)
        if not isinstance(layer, CONTRACTIONS) or not is_plain(layer):
            continue
        names = {str(node.target), *(f"{node.target}.{name}" for name in layer._parameters)}
        if all(holders[id(p)] == 1 for p in layer.parameters()) and not names & read:
            found.setdefault(layer, []).append(node)
    return found


def set_bias(layer: nn.Linear | _ConvNd, bias: Tensor) -> None:
    """Set a layer's own bias (out_channels,) in place, or give it one of the weight's type."""
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.detach().copy_(bias)


def follow_weight(layer: nn.Module, inputs: torch.Size, outputs: torch.Size) -> None:
    """Set the size attributes of a layer to what its tensors say.

    Args:
        layer: a layer whose tensors were cut; one without sizes of its own is left alone.
        inputs: the shape of its input now.
        outputs: the shape of its result now.
    """
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _ConvNd):
        dim = -1 - len(layer.kernel_size)
        layer.in_channels, layer.out_channels = inputs[dim], outputs[dim]
        whole = layer.out_channels if isinstance(layer, _ConvTransposeNd) else layer.in_channels
        layer.groups = whole // layer.weight.shape[1]
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    elif isinstance(layer, _NormBase) and len(inputs) > 1:
        layer.num_features = inputs[1]
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups = layer.num_groups * inputs[1] // layer.num_channels
        layer.num_channels = inputs[1]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.numel()


def per_output(layer: nn.Linear | _ConvNd, vector: Tensor) -> Tensor:
    """A vector over a layer's output channels, shaped to multiply its weight."""
    if not isinstance(layer, _ConvTransposeNd):
        return vector.view(-1, *(1,) * (layer.weight.dim() - 1))
    # the weight of a transposed convolution is (groups * inputs, outputs / groups, taps...)
    rows = vector.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1).flatten(0, 1)
    return rows.view(*rows.shape, *(1,) * (layer.weight.dim() - 2))


def is_evenly_padded(layer: nn.Linear | _ConvNd) -> bool:
    """Whether a constant input channel adds the same to every output position.

    Zero padding breaks that at the border; a transposed convolution reaches different positions by
    different taps.
    """
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, _ConvTransposeNd):
        return False
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return True
    if layer.padding == "same":
        return all(size == 1 for size in layer.kernel_size)
    return not any(int(p) for p in layer.padding)


def double(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A tensor in float64 (zeros of the shape of ``like`` for None), so that folding rounds once."""
    return torch.zeros_like(like, dtype=torch.float64) if tensor is None else tensor.detach().double()


def drop_unread(graph_module: fx.GraphModule, names: Iterable[str]) -> None:
    """Take parameters and buffers of the given names out of the module, where no node reads or calls them."""
    used = {str(node.target) for node in graph_module.graph.nodes if node.op in ("get_attr", "call_module")}
    for name in names:
        if not any(f"{name}.".startswith(f"{target}.") for target in used):
            path, _, attribute = name.rpartition(".")
            holder = graph_module.get_submodule(path)
            holder._parameters.pop(attribute, None)
            holder._buffers.pop(attribute, None)


def erase_unused(graph: fx.Graph, nodes: Iterable[fx.Node | None]) -> None:
    """Erase the given nodes that no node reads; pass readers before the nodes that they read."""
    for node in dict.fromkeys(nodes):
        if node is not None and not node.users:
            graph.erase_node(node)
