"""The common shape of tensors, without the compiler that ``torch.broadcast_shapes`` imports for a second."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Size


def broadcast_shapes(*shapes: Size) -> Size:
    """The shape to which tensors of some shapes broadcast together."""
    common: Size = reduce(torch._C._infer_size, shapes, Size())
    return common
