"""What a mask does to a weight, and which tensors are masks."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.errors import SparseFxError
from sparsefx.masking.sharding import local

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def zero_outside(weight: Tensor, mask: Tensor) -> None:
    """Set ``weight`` to 0 where ``mask`` (bool, same shape) is False, in place.

    The weight's bits are multiplied as integers by the mask's 0 or 1: half the time of any
    floating-point product or fill, exact where the mask is True, and NaN and infinity become 0 too.
    """
    weight, mask = local(weight), local(mask)
    integer = _INTEGER_OF_SIZE.get(weight.element_size())
    if integer is None:  # complex128
        weight.masked_fill_(~mask, 0)
        return
    weight.view(integer).mul_(mask.view(torch.int8))


def as_bool(mask: Tensor, what: str, error: type[SparseFxError], remedy: str) -> Tensor:
    """A mask of 0 and 1 in any type as bools of its shape; one that is bool already is returned as it is.

    Args:
        mask: of any shape.
        what: what the error calls it.
        error: what is raised where it is none.
        remedy: what the error says to do.

    Raises:
        SparseFxError: of the class ``error``, where the mask holds other values.
    """
    if mask.dtype == torch.bool or mask.is_meta:
        return mask.to(torch.bool)
    values = local(mask)
    if bool(((values != 0) & (values != 1)).any()):
        raise error(f"{what} ({mask.dtype}) holds values that are neither 0 nor 1; {remedy}")
    return mask.to(torch.bool)
