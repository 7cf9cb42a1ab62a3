"""Masked layers: each a subclass of the layer it replaces, with a bool buffer ``mask``.

Forward is inherited unchanged, so autocast, ``torch.compile``, DDP and quantisation see an ordinary
layer, and a mask costs one byte a weight and no time in the forward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsefx.masking.mask_record import mask_of, remember
from sparsefx.masking.masks import attach_mask, detach_masks
from sparsefx.masking.sharding import is_sharded

MASKABLE: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class MaskedLayer(nn.Module):
    """What the masked layers add to the layer they replace: the mask, and its density when printed.

    Constructed directly, a masked layer takes the plain layer's arguments and starts with a mask
    that is True everywhere; :func:`sparsefx.sparsify` converts existing layers.
    """

    mask: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _stay_leaf(self)
        attach_mask(self, "weight", torch.ones_like(self.get_parameter("weight"), dtype=torch.bool))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and unpickled layers come here."""
        super().__setstate__(state)
        remember(self)

    def extra_repr(self) -> str:
        """The plain layer's, and the density."""
        mask = mask_of(self, "weight")
        if mask.is_meta or is_sharded(mask):  # to count that one, all processes would have to print
            return super().extra_repr()
        return f"{super().extra_repr()}, density={float(mask.sum()) / max(1, mask.numel()):.4g}"


class MaskedLinear(MaskedLayer, nn.Linear):
    """``nn.Linear`` whose weight (out, in) is 0 where ``mask`` (out, in) is False."""


class MaskedConv1d(MaskedLayer, nn.Conv1d):
    """``nn.Conv1d`` whose weight (out, in / groups, k) is 0 where ``mask`` is False."""


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weight (out, in / groups, kh, kw) is 0 where ``mask`` is False."""


class MaskedConv3d(MaskedLayer, nn.Conv3d):
    """``nn.Conv3d`` whose weight (out, in / groups, kd, kh, kw) is 0 where ``mask`` is False."""


class MaskedConvTranspose1d(MaskedLayer, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` whose weight (in, out / groups, k) is 0 where ``mask`` is False."""


class MaskedConvTranspose2d(MaskedLayer, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` whose weight (in, out / groups, kh, kw) is 0 where ``mask`` is False."""


class MaskedConvTranspose3d(MaskedLayer, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` whose weight (in, out / groups, kd, kh, kw) is 0 where ``mask`` is False."""


_MASKED_CLASS: dict[type[nn.Module], type[MaskedLayer]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
    nn.ConvTranspose1d: MaskedConvTranspose1d,
    nn.ConvTranspose2d: MaskedConvTranspose2d,
    nn.ConvTranspose3d: MaskedConvTranspose3d,
}


def mask_layer(layer: nn.Module, mask: Tensor) -> None:
    """Turn a layer into its masked equivalent, in place.

    The object stays the same and only its class changes, so hooks, tied references and attributes
    of a user's own subclass survive.

    Args:
        layer: an instance of one of :data:`MASKABLE` or of a subclass.
        mask: bool tensor of the shape of ``layer.weight``.
    """
    layer.__class__ = masked_class(type(layer))
    _stay_leaf(layer)
    attach_mask(layer, "weight", mask)


def unmask_layer(layer: nn.Module) -> None:
    """Undo :func:`mask_layer`: the plain layer again, weights as they are, no mask."""
    mro = type(layer).__mro__[1:]
    layer.__class__ = next(c for c in mro if issubclass(c, nn.Module) and not issubclass(c, MaskedLayer))
    layer.__dict__.pop("__module__", None)
    detach_masks(layer)


def _stay_leaf(layer: nn.Module) -> None:
    """Let tracers stop at a masked layer as they do at torch's own, or they lose its mask.

    torch.fx, and with it feature extractors and quantisation, asks each module for its ``__module__``.
    """
    torchs = next(kind for kind in type(layer).__mro__ if kind in MASKABLE)
    layer.__dict__["__module__"] = torchs.__module__


def masked_class(plain: type[nn.Module]) -> type[MaskedLayer]:
    """The masked class of a plain layer class; made, once, for a subclass of a maskable layer."""
    if plain not in _MASKED_CLASS:
        namespace = {"__module__": plain.__module__, "__reduce__": _reduce_masked_subclass}
        _MASKED_CLASS[plain] = cast(
            "type[MaskedLayer]", type(f"Masked{plain.__name__}", (MaskedLayer, plain), namespace)
        )
    return _MASKED_CLASS[plain]


def _reduce_masked_subclass(layer: nn.Module) -> tuple[Any, ...]:
    """Pickle a layer of a class made at run time by the class it was made from."""
    return _empty_masked, (type(layer).__mro__[2],), layer.__dict__


def _empty_masked(plain: type[nn.Module]) -> nn.Module:
    cls = masked_class(plain)
    return cls.__new__(cls)
