"""A network as it was at some step, to go back to."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.masking.masks import apply_masks, bare, masked_weights
from sparsefx.optim.sparse_optimizer import SparseOptimizer


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The values of a model and its optimizer, without the masks.

    Attributes:
        tensors: parameters and buffers by name, but no masks.
        optimizer: the wrapped optimizer's state dict.
    """

    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, optimizer: SparseOptimizer) -> Snapshot:
        """As they are now."""
        masks = {id(module.get_buffer(name)) for m in masked_weights(model) for module, _, name in m.holders}
        held = {
            name: tensor.detach().clone()
            for name, tensor in bare(model).state_dict(keep_vars=True).items()
            if isinstance(tensor, Tensor) and id(tensor) not in masks
        }
        return cls(held, copy.deepcopy(optimizer.wrapped.state_dict()))

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Set a model back to what it was; masks stay as they are, and weights outside them 0."""
        present = bare(model).state_dict(keep_vars=True)
        for name, tensor in self.tensors.items():
            present[name].copy_(tensor)
        apply_masks(model)

    def restore_optimizer(self, optimizer: SparseOptimizer) -> None:
        """Set the wrapped optimizer back to what it was."""
        optimizer.wrapped.load_state_dict(copy.deepcopy(self.optimizer))

    def to_plain(self) -> dict[str, Any]:
        """As a state dict holds it."""
        return {"tensors": self.tensors, "optimizer": self.optimizer}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Snapshot:
        """Undo :meth:`to_plain`."""
        return cls(dict(plain["tensors"]), dict(plain["optimizer"]))
