"""What every regulariser shares: a penalty while training, then one decision about the mask.

A regulariser trains all weights of a model whose masks are still True everywhere, under a penalty or
with noise, and decides at the end which of them stay. What the methods differ in is the penalty, what
they do to the layers meanwhile, and how they rank weights; the rest is here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsefx.cycle.positions.select import select_largest
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import MaskedWeight, check_unsharded, masked_weights


@dataclass(frozen=True)
class Decision:
    """What a method would do now with each of the model's N masked weights, all layers in one row.

    Attributes:
        values: float, shape (N,): the value of each weight if it is kept.
        scores: float, shape (N,), no NaN: the method's ranking; the largest are kept first.
        keep: bool, shape (N,): what the method's own threshold keeps.
    """

    values: Tensor
    scores: Tensor
    keep: Tensor


class Regulariser(nn.Module, ABC):
    """Trains every weight under a penalty or with noise and decides the masks at the end.

    It is a module of its own beside the model: its ``state_dict`` has the method's parameters and its
    place in the schedule, and nothing of the model. What it does to the model's layers it does through
    hooks, which :meth:`decide` and :meth:`detach` remove. Random numbers come from torch's global
    generators, as those of dropout do. Its parameters are made on the weights' device: move the model
    there first, or the regulariser with it. Under DistributedDataParallel their gradients are not averaged
    over the ranks, as they are not the model's.

    Args:
        model: a model from ``sparsify(model, density=1.0)``; ``dense=`` leaves layers out of it, and frozen
            layers are left out, too.

    Attributes:
        progress: fraction of training done, as last told to :meth:`after_step`.

    Raises:
        ArgumentError: the model has no masked weights that learn, masks that are not True everywhere, or
            weights that are sharded over processes.
    """

    progress: float

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_unsharded(model, "a regulariser")
        self.progress = 0.0
        self._masked = [masked for masked in masked_weights(model) if masked.weight.requires_grad]
        self._handles: list[RemovableHandle] = []
        self._attached = False
        _check(self._masked)

    def penalty(self) -> Tensor:
        """The scalar to add to the mean loss of a batch; 0 once detached."""
        return self._penalty() if self._attached else self._masked[0].weight.new_zeros(())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The method's own parameters as groups for the optimizer, with the learning rates of its paper."""
        return []

    def after_step(self, progress: float) -> None:
        """Follow the schedule; to be called after every step of the optimizer.

        Args:
            progress: fraction of training done, in [0, 1].

        Raises:
            ArgumentError: ``progress`` is outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ArgumentError(f"progress={progress!r} is outside [0, 1]; pass steps done / total steps")
        before, self.progress = self.progress, float(progress)
        if self._attached:
            self._advance(before)

    @torch.no_grad()
    def density(self) -> float:
        """The fraction of the masked weights that the method's own threshold keeps at present."""
        keep = self._decision().keep if self._attached else self._flat(m.mask for m in self._masked)
        return float(keep.sum()) / keep.numel()

    @torch.no_grad()
    def decide(self, density: float | None = None) -> None:
        """Write the decided weights and masks into the model, and detach from it.

        Args:
            density: keep exactly ``round(density * N)`` of the N masked weights, those that the method
                ranks first; None keeps what its own threshold keeps.

        Raises:
            ArgumentError: ``density`` is outside (0, 1], or the decision was made already.
        """
        if not self._attached:
            raise ArgumentError("decide() was called on a detached regulariser; the masks are decided")
        if density is not None and not 0 < density <= 1:
            raise ArgumentError(f"density={density!r} is outside (0, 1]; None uses the method's threshold")
        decision = self._decision()
        keep = decision.keep
        if density is not None:
            count = round(density * keep.numel())
            keep = select_largest(decision.scores, torch.ones_like(keep), count)
        sizes = [masked.weight.numel() for masked in self._masked]
        parts = zip(self._masked, decision.values.split(sizes), keep.split(sizes), strict=True)
        for masked, values, kept in parts:
            masked.weight.copy_(values.view_as(masked.weight))
            masked.set_mask(kept.view_as(masked.mask))
        self._fold()
        self.detach()

    def attach(self) -> None:
        """Put the method's hooks on the model's layers; done at construction."""
        self.detach()
        self._handles = list(self._hooks())
        self._attached = True

    def detach(self) -> None:
        """Remove every hook from the model; from then on nothing here acts on it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._attached = False

    def get_extra_state(self) -> dict[str, Any]:
        """Where the schedule is, for ``state_dict``."""
        return {"progress": self.progress, "attached": self._attached}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_extra_state`; a state saved after the decision detaches."""
        self.progress = float(state["progress"])
        if state["attached"]:
            self.attach()
        else:
            self.detach()

    @abstractmethod
    def _penalty(self) -> Tensor:
        """The differentiable scalar of :meth:`penalty`."""

    @abstractmethod
    def _decision(self) -> Decision:
        """What the method would decide now."""

    def _advance(self, before: float) -> None:
        """Act on ``self.progress``, which was ``before`` one step ago."""

    def _hooks(self) -> Iterable[RemovableHandle]:
        """Put hooks on the layers and hand their handles over."""
        return ()

    def _fold(self) -> None:
        """Write what the decision changes besides masked weights."""

    def _weights(self) -> Tensor:
        """All masked weights in one row, shape (N,), differentiable."""
        return self._flat(masked.weight for masked in self._masked)

    @staticmethod
    def _flat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])


def check_positive(argument: str, value: float, *, zero: bool = False) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is a finite positive number (or 0 if ``zero``)."""
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ArgumentError(f"{argument}={value!r} is not a {'nonnegative' if zero else 'positive'} number")


def _check(layers: list[MaskedWeight]) -> None:
    if not layers:
        raise ArgumentError("model has no masked weights that learn; use sparsefx.sparsify(model, 1.0)")
    sparse = [masked.name for masked in layers if not bool(masked.mask.all())]
    if sparse:
        raise ArgumentError(
            f"model has inactive weights in {', '.join(sparse)}; a regulariser decides over all weights: "
            "start from sparsefx.masking.sparsify(model, density=1.0)"
        )
