"""A training run as ``torch.distributed.checkpoint`` saves it, to go on with on any number of ranks."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError, CheckpointError
from sparsefx.masking.masks import masked_weights
from sparsefx.optim.gradients.momentum import keeps_momentum
from sparsefx.optim.optimizer_state import begin_state
from sparsefx.optim.sparse_optimizer import SparseOptimizer

_DAMAGED = (AttributeError, EOFError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)


class TrainingState:
    """Model, masks and optimizer, for ``torch.distributed.checkpoint`` to save and load by name.

    What is sharded over ranks is saved by each rank, and may be loaded by another number of ranks, or by
    a model that is not sharded; ``dcp.load`` calls the methods here. A resumed run of as many ranks goes on
    bit for bit.

    Args:
        model: the sparsified model, also sharded by ``fully_shard`` or inside DistributedDataParallel.
        optimizer: its :class:`SparseMomentum`, or another :class:`SparseOptimizer`.

    Raises:
        ArgumentError: an argument is something else.

    Example:
        >>> import tempfile, torch, sparsefx
        >>> import torch.distributed.checkpoint as dcp
        >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 8)), density=0.25)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = sparsefx.SparseMomentum(sgd, model, cycles=10)
        >>> state = sparsefx.TrainingState(model, optimizer)
        >>> sorted(state.state_dict())
        ['averages', 'companions', 'model', 'optimizer', 'plain']
    """

    def __init__(self, model: nn.Module, optimizer: SparseOptimizer) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if not isinstance(optimizer, SparseOptimizer):
            raise ArgumentError(
                "optimizer must be a SparseMomentum or another SparseOptimizer, not "
                f"{type(optimizer).__name__}"
            )
        self._model = model
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name, and the rest as bytes. What the optimizer has no state of yet gets its first one.

        Raises:
            ArgumentError: the optimizer has no state yet and cannot step without a closure.
        """
        from torch.distributed.checkpoint.state_dict import get_state_dict

        begin_state(self._optimizer.wrapped)
        model, wrapped = get_state_dict(self._model, self._optimizer.wrapped)
        own = dict(self._optimizer.state_dict()[self._optimizer.key])
        auxiliary = own.pop("companions")
        averages = {**self._missing_averages(), **own.pop("averages")}
        content = io.BytesIO()
        torch.save({**own, "spreads": auxiliary["spreads"]}, content)
        return {
            "model": model,
            "optimizer": wrapped,
            "averages": averages,
            "companions": auxiliary["tensors"],
            "plain": content.getvalue(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            CheckpointError: it is damaged, or of another model or method. Weights may have changed then.
        """
        from torch.distributed.checkpoint.state_dict import set_state_dict

        optimizer = self._optimizer
        try:
            own = torch.load(io.BytesIO(state_dict["plain"]), weights_only=True)
            auxiliary = {"tensors": state_dict.get("companions", {}), "spreads": own.pop("spreads")}
            own = {**own, "averages": state_dict.get("averages", {}), "companions": auxiliary}
            set_state_dict(
                self._model,
                optimizer.wrapped,
                model_state_dict=state_dict["model"],
                optim_state_dict=state_dict["optimizer"],
            )
        except _DAMAGED as error:
            raise CheckpointError(f"the saved training state cannot be used: {error!r}") from error
        optimizer.load_state_dict({**optimizer.wrapped.state_dict(), optimizer.key: own})

    def _missing_averages(self) -> dict[str, Tensor]:
        """Zeros for the averages that the optimizer will keep, so that there is what to load them into."""
        if not self._optimizer.rules.reads_momentum():
            return {}
        return {
            layer.name: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for layer in masked_weights(self._model)
            if not keeps_momentum(self._optimizer.wrapped, weight := layer.weight)
        }
