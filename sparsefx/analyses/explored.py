"""The fraction of positions that were ever active."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError, CheckpointError
from sparsefx.masks import masked_weights


class Explored:
    """Which positions of a model's masked weights were ever active (ITOP: Liu et al. 2021, section 3).

    The fraction never decreases, is at least the density, and at most 1. Costs one byte a weight.

    Args:
        model: a sparsified model; its present masks are the first to count.

    Raises:
        ArgumentError: the model has no masked weights.

    Example:
        >>> import torch, sparsefx
        >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(4, 4)), density=0.25)
        >>> explored = Explored(model)
        >>> explored.fraction
        0.25
        >>> model.get_submodule("0").mask.fill_(True).all()
        tensor(True)
        >>> explored.update()
        1.0
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen = {masked.name: masked.mask.clone() for masked in masked_weights(model)}
        if not self._seen:
            raise ArgumentError("model has no masked weights; pass it through sparsefx.sparsify first")

    @torch.no_grad()
    def update(self) -> float:
        """Count the present masks too: call it after every cycle. Returns :attr:`fraction`."""
        for masked in masked_weights(self._model):
            seen = self._seen[masked.name].to(masked.mask.device)
            self._seen[masked.name] = seen.logical_or_(masked.mask)
        return self.fraction

    @property
    def fraction(self) -> float:
        """Positions ever active over all positions, in [0, 1]."""
        active = sum(int(seen.sum()) for seen in self._seen.values())
        return active / max(1, sum(seen.numel() for seen in self._seen.values()))

    @property
    def fractions(self) -> dict[str, float]:
        """The same for every masked weight, by name."""
        return {name: int(seen.sum()) / max(1, seen.numel()) for name, seen in self._seen.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The positions, bool, by masked weight. Readable by ``torch.load(weights_only=True)``."""
        return {name: seen.clone() for name, seen in self._seen.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; the present masks count with the next :meth:`update`.

        Raises:
            CheckpointError: it is of other masked weights. Nothing has changed then.
        """
        differing = sorted(
            name
            for name in self._seen.keys() | state_dict.keys()
            if _kind(self._seen.get(name)) != _kind(state_dict.get(name))
        )
        if differing:
            raise CheckpointError(
                f"state_dict is of other masked weights: {', '.join(differing)} differ in name or shape; "
                "build the model as it was when it was saved"
            )
        self._seen = {name: state_dict[name].to(seen.device, copy=True) for name, seen in self._seen.items()}


def _kind(value: Any) -> tuple[Any, ...] | None:
    return (value.dtype, value.shape) if isinstance(value, Tensor) else None
