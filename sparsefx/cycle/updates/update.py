"""An update of the masks: what it decides for each layer, and updates one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.cycle.updates.record import LayerRecord
from sparsefx.errors import CycleError


@dataclass(frozen=True, eq=False)
class LayerOutcome:
    """The decision on one layer.

    Attributes:
        mask: the new mask, bool, shape ``S``.
        grown: True where a weight was activated, bool, shape ``S``; these weights get a new value, also
            where the same update had just removed them.
        record: the same in numbers.
    """

    mask: Tensor
    grown: Tensor
    record: LayerRecord

    @classmethod
    def of(cls, layer: LayerState, mask: Tensor, grown: Tensor | None = None) -> LayerOutcome:
        """The outcome of a layer's new mask; what was inactive before has grown, unless more is named."""
        grown = mask & ~layer.mask if grown is None else grown
        active, gain = layer.count(mask), layer.count(grown)
        loss = layer.active + gain - active
        density = active / max(1, layer.numel)
        return cls(mask, grown, LayerRecord(layer.name, loss, gain, 0.0, density, active, layer.numel))


Update = Callable[[Sequence[LayerState], UpdateContext], list[LayerOutcome]]
"""Decides new masks for all layers; writes nothing but its context's notes."""


def in_turn(
    updates: Sequence[Update], layers: Sequence[LayerState], context: UpdateContext
) -> list[LayerOutcome]:
    """Run updates one after the other, each on the masks that the one before left.

    Args:
        updates: any number; without one the masks stay.
        layers: every layer that takes part.
        context: handed to each, with the notes under its own name; see :func:`names_of`.

    Returns:
        One outcome a layer, of all updates together.

    Raises:
        CycleError: an update returned something else than one mask of its shape a layer.
    """
    outcomes: list[LayerOutcome] = []
    between = layers
    for name, update in zip(names_of(updates), updates, strict=True):
        own = replace(context, notes=context.notes.setdefault(name, {}))
        after = _checked(name, between, update(between, own))
        outcomes = [_join(*both) for both in zip(outcomes, after, strict=True)] if outcomes else after
        between = [layer.with_mask(o.mask) for layer, o in zip(layers, outcomes, strict=True)]
    return outcomes or [LayerOutcome.of(layer, layer.mask) for layer in layers]


def names_of(updates: Sequence[Update]) -> list[str]:
    """The name of each update, under which its notes are kept.

    It is that of its class or function, with a number from the second of a name on.

    Example:
        >>> from sparsefx.cycle import Hysteresis, positive
        >>> names_of([positive, Hysteresis(0.1), Hysteresis(0.2)])
        ['positive', 'Hysteresis', 'Hysteresis 2']
    """
    plain = [getattr(update, "__name__", type(update).__name__) for update in updates]
    numbers = [plain[: index + 1].count(name) for index, name in enumerate(plain)]
    return [name if number == 1 else f"{name} {number}" for name, number in zip(plain, numbers, strict=True)]


def notes_by_name(shared: Mapping[str, Any], updates: Sequence[Update]) -> dict[str, Any]:
    """Notes as they were saved when all updates shared them: each gets a copy of its own."""
    return {name: copy.deepcopy(dict(shared)) for name in names_of(updates)} if shared else {}


def _join(one: LayerOutcome, other: LayerOutcome) -> LayerOutcome:
    first, last = one.record, other.record
    record = replace(
        last,
        pruned=first.pruned + last.pruned,
        grown=first.grown + last.grown,
        share=first.share + last.share,  # only prune and regrow has one
    )
    return LayerOutcome(other.mask, (one.grown & other.mask) | other.grown, record)


def _checked(name: str, layers: Sequence[LayerState], outcomes: Any) -> list[LayerOutcome]:
    """The outcomes, if they are what an update must return."""
    if not isinstance(outcomes, list) or len(outcomes) != len(layers):
        raise CycleError(f"update {name!r} must return a list of one LayerOutcome for each of the layers")
    for layer, outcome in zip(layers, outcomes, strict=True):
        mask = outcome.mask
        if mask.dtype != torch.bool or mask.shape != layer.mask.shape:
            raise CycleError(
                f"update {name!r} returned a mask of {mask.dtype} {tuple(mask.shape)} for layer "
                f"{layer.name!r}; it must be bool {tuple(layer.mask.shape)}"
            )
    return outcomes
