"""Where the training loop finds a masked weight and its mask, at every step and at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from sparsefx.cycle.positions.block import Block
from sparsefx.masking.mask_values import zero_outside
from sparsefx.masking.masks import MaskedWeight
from sparsefx.masking.packing import Packing, packing_of
from sparsefx.masking.sharding import block_of, count_true, is_sharded, local


@dataclass(frozen=True, eq=False)
class WeightHandle:
    """Where one masked weight and its mask are found at every step.

    The modules' own dictionaries are looked up each time, so a tensor that ``Module.to`` or
    ``load_state_dict(assign=True)`` replaces is never missed.

    Attributes:
        masked: the masked weight.
        parameters: the ``_parameters`` of its first holder, and the weight's ``parameter`` name there.
        buffers: the ``_buffers`` of its first holder, and the mask's ``mask_name`` there.
        full: the mask, if it was True everywhere when seen at its ``version``; nothing to zero then.
        block: which block of the weight this process holds; None for all of it.
    """

    masked: MaskedWeight
    parameters: dict[str, Any]
    parameter: str
    buffers: dict[str, Tensor]
    mask_name: str
    full: Tensor | None
    version: int
    block: Block | None

    @property
    def weight(self) -> Tensor:
        """The weight, as it is now, of its full shape; sharded or not."""
        weight: Tensor = self.parameters[self.parameter]
        return weight

    @property
    def values(self) -> Tensor:
        """What this process holds of the weight, of its local shape, without its history."""
        values: Tensor = local(self.weight.detach())
        return values

    @property
    def mask(self) -> Tensor:
        """What this process holds of the mask, bool, of its local shape."""
        mask: Tensor = local(self.buffers[self.mask_name])
        return mask

    @property
    def packing(self) -> Packing | None:
        """How the weight is packed; None if it never is."""
        return packing_of(self.masked.holders[0][0], self.parameter)

    @property
    def is_packed(self) -> bool:
        """Whether the weight has its active values alone now."""
        packing = self.packing
        return packing is not None and packing.is_packed

    @property
    def was_moved(self) -> bool:
        """Whether the weight is sharded over processes and the mask is not, or the other way round."""
        return is_sharded(self.weight) != is_sharded(self.buffers[self.mask_name])

    @classmethod
    def of(cls, masked: MaskedWeight) -> WeightHandle:
        """The handle of a masked weight as it is now."""
        module, parameter, name = masked.holders[0]
        mask = masked.mask
        full = mask if count_true(mask) == mask.numel() else None
        buffers = cast("dict[str, Tensor]", module._buffers)
        version = local(mask)._version
        block = block_of(masked.weight)
        return cls(masked, module._parameters, parameter, buffers, name, full, version, block)

    def zero_inactive(self, *others: Tensor) -> None:
        """Zero the weight, and others of its shape, outside its mask, unless nothing is there."""
        if self.is_packed:
            return
        mask = self.buffers[self.mask_name]
        if mask is self.full and local(mask)._version == self.version:
            return
        zero_outside(self.weight, mask)
        for tensor in others:
            zero_outside(tensor, mask)
