"""The shapes that a torch layer's attributes promise of its tensors."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

SIZES = frozenset(
    (
        *("in_features", "out_features", "in_channels", "out_channels", "groups"),
        *("num_features", "num_channels", "num_groups", "normalized_shape"),
        *("num_embeddings", "embedding_dim"),
    )
)
"""The attributes of layers that passes rewrite when they cut tensors."""


def promised_shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's parameters and buffers by its attributes; empty for an unknown layer."""
    if isinstance(layer, nn.Linear):
        return {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    if isinstance(layer, _ConvNd):
        inputs, outputs, groups = layer.in_channels, layer.out_channels, max(layer.groups, 1)
        if isinstance(layer, _ConvTransposeNd):
            weight = (inputs, outputs // groups, *layer.kernel_size)
        else:
            weight = (outputs, inputs // groups, *layer.kernel_size)
        return {"weight": weight, "bias": (outputs,)}
    if isinstance(layer, _NormBase):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,))
    if isinstance(layer, nn.GroupNorm):
        return dict.fromkeys(("weight", "bias"), (layer.num_channels,))
    if isinstance(layer, nn.LayerNorm):
        return dict.fromkeys(("weight", "bias"), tuple(layer.normalized_shape))
    if isinstance(layer, nn.Embedding):
        return {"weight": (layer.num_embeddings, layer.embedding_dim)}
    return {}
