"""A layer norm over channels of which some are only known constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class PartialLayerNorm(nn.Module):
    """Layer normalisation over the last dimension, some of whose channels are only known constants.

    Mean and variance are those over all ``size`` channels of the original. Those that are still there
    are marked in ``counted``; the others add ``total`` to the sum and ``squares`` to the sum of squares.

    Args:
        norm: the layer it replaces.
        constant: bool (channels,), the channels to count as constants.
        value: (channels,) their values.
    """

    counted: Tensor

    def __init__(self, norm: nn.LayerNorm, constant: Tensor, value: Tensor) -> None:
        super().__init__()
        self.size, self.eps = norm.normalized_shape[0], norm.eps
        self.missing = int(constant.sum())
        self.total = float(value[constant].double().sum())
        self.squares = float(value[constant].double().square().sum())
        like = norm.weight if norm.weight is not None else value
        self.register_buffer("counted", (~constant).to(like)[:, None])
        self.weight, self.bias = norm.weight, norm.bias

    @classmethod
    def of_attributes(cls, values: Mapping[str, Any]) -> PartialLayerNorm:
        """A layer without tensors, from its other attributes by name."""
        norm = cls.__new__(cls)
        nn.Module.__init__(norm)
        norm.size, norm.missing = int(values["size"]), int(values["missing"])
        norm.eps, norm.total, norm.squares = (float(values[name]) for name in ("eps", "total", "squares"))
        norm.register_buffer("counted", torch.empty(0, device="meta"))
        norm.weight = norm.bias = nn.Parameter(torch.empty(0, device="meta"))
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., channels)."""
        mean = (x.matmul(self.counted) + self.total) / self.size
        centred = x - mean
        squares = centred.square().matmul(self.counted)
        missing = self.squares - 2 * mean * self.total + self.missing * mean.square()
        result = centred * torch.rsqrt((squares + missing) / self.size + self.eps)
        result = result if self.weight is None else result * self.weight
        return result if self.bias is None else result + self.bias
