"""Which active weights of a layer are removed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsefx.cycle.layer_state import LayerState
from sparsefx.cycle.select import magnitudes, select_largest

Prune = Callable[[LayerState, int, "torch.Generator | None"], Tensor]


def magnitude(layer: LayerState, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Remove the ``count`` active weights of smallest magnitude; of equals, the lowest flat index.

    Only active positions are ranked, so an active weight that happens to be 0 is removed before
    any larger one and an inactive zero is never counted (Dettmers & Zettlemoyer 2019, section 3.2).

    Args:
        layer: the layer, weight and mask of shape ``S``.
        count: how many weights to remove, at most ``layer.active``.
        generator: not used.

    Returns:
        Bool tensor of shape ``S``, True at exactly ``count`` positions, all of them active.
    """
    return select_largest(-magnitudes(layer.weight), layer.mask, count)


PRUNE: dict[str, Prune] = {"magnitude": magnitude}
