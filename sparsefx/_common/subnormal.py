"""Subnormal numbers: so small that many CPUs compute with them tens of times slower."""

from __future__ import annotations

import torch
from torch import Tensor

_KINDS = (torch.float32, torch.float64, torch.bfloat16)  # in float16 they begin at 6e-5 and mean something


def subnormal(values: Tensor) -> Tensor:
    """Where values of any shape are subnormal, bool of that shape; in float16 and integers nowhere."""
    if values.dtype not in _KINDS:
        return torch.zeros_like(values, dtype=torch.bool)
    return (values != 0) & (values.abs() < torch.finfo(values.dtype).tiny)


@torch.no_grad()
def flush_subnormal(values: Tensor) -> None:
    """Set the subnormal ones among values of any shape to 0, in place, on a CPU; others compute as fast."""
    if values.device.type == "cpu" and values.dtype in _KINDS:
        values.masked_fill_(values.abs() < torch.finfo(values.dtype).tiny, 0)
