"""What a sparse training method does at each step and at each update of the masks, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sparsefx._common.values import is_number
from sparsefx.cycle import Decay, LayerState, Update, UpdateContext
from sparsefx.cycle.rules.decay import constant
from sparsefx.errors import ArgumentError

GradientTerm = Callable[[LayerState, UpdateContext], Tensor]
"""What is added to a layer's gradient before each step, of the weight's shape."""


@dataclass(frozen=True)
class Rules:
    """The independent axes of a method, beside when its updates happen.

    Attributes:
        updates: decide the new masks, one after the other.
        prune_rate: fraction of a layer's active weights to remove in an update, before decay, in [0, 1].
        decay: what becomes of it as training progresses.
        new_weights: value of a weight that becomes active: ``"zero"``, ``"initial"`` (normal, with
            the standard deviation that the layer's active weights had first), or ``"sign"`` (1e-12 with the
            sign of its position). With a memory it is the stored value instead.
        inactive_buffers: what happens to the optimizer's buffers where the weight is inactive: ``"keep"``,
            ``"zero_on_grow"`` (where a weight becomes active) or ``"mask"`` (after every step).
        replaces_step: an update of the masks takes the place of the optimizer's step.
        memory: None, or which stored weights learn: ``"all"``, ``"active"`` ones, or the ``"backward"`` set,
            the largest of them. The model computes with the active ones alone.
        backward: with ``memory="backward"``, how much denser that set is than the active one.
        least: with a memory and signs, how far a stored weight may go below 0 in its position's sign;
            inactive weights start anywhere between.
        gradient_terms: added to the gradient before each step.
        signs: each position is bound to a sign, which an active weight has at first.
        explores: keep count of what was ever active, one byte a weight.
    """

    updates: tuple[Update, ...] = ()
    prune_rate: float = 0.0
    decay: Decay = constant
    new_weights: Literal["zero", "initial", "sign"] = "zero"
    inactive_buffers: Literal["keep", "zero_on_grow", "mask"] = "keep"
    replaces_step: bool = False
    memory: Literal["all", "active", "backward"] | None = None
    backward: float = 0.0
    least: float | None = None
    gradient_terms: tuple[GradientTerm, ...] = ()
    signs: bool = False
    explores: bool = False

    def __post_init__(self) -> None:
        rate = self.prune_rate
        if not is_number(rate) or not 0 <= rate <= 1:
            raise ArgumentError(f"prune_rate={rate!r} is not in [0, 1]")

    def reads_momentum(self) -> bool:
        """Whether an update may read the momentum; one that does not say so is taken to."""
        return any(getattr(update, "reads_momentum", True) for update in self.updates)

    def needs_momentum(self) -> bool:
        """Whether momentum of inactive weights matters: an update may read it, or new weights have it."""
        return self.reads_momentum() or (bool(self.updates) and self.inactive_buffers == "keep")
