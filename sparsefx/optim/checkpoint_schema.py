"""The wrapper's part of a state dict: whether it is one, whole, and for this model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsefx.cycle import Update
from sparsefx.cycle.updates.update import notes_by_name
from sparsefx.errors import CheckpointError

_ENTRIES = frozenset({"cycle", "step", "generator", "averages", "notes", "companions", "layers", "history"})


def check_own_state(own: Any, key: str, wrapper: str, shapes: Mapping[str, list[int]]) -> None:
    """Refuse what no wrapper of this model has saved.

    Args:
        own: what the state dict has under ``key``.
        key: where the wrapper keeps its part.
        wrapper: the name of its class.
        shapes: of the model's masked weights, by layer.

    Raises:
        CheckpointError: it is missing, damaged, lacks an entry, or is of other layers.
    """
    if not isinstance(own, Mapping):
        raise CheckpointError(
            f"state_dict has no {key!r} entry; it must come from {wrapper}.state_dict(), or by "
            "torch.distributed.checkpoint from a sparsefx.TrainingState. To start from the plain optimizer's "
            "state, load it into that optimizer before wrapping it"
        )
    missing = _ENTRIES - own.keys()
    if missing:
        raise CheckpointError(f"state_dict[{key!r}] lacks {', '.join(sorted(missing))}; save it again")
    for entry in ("averages", "notes", "companions", "layers"):
        if not isinstance(own[entry], Mapping):
            raise CheckpointError(
                f"state_dict[{key!r}][{entry!r}] is damaged: it is {own[entry]!r}; save it again"
            )
    saved = dict(own["layers"])
    strange = sorted(set(own["averages"]) - set(saved))
    if strange:
        raise CheckpointError(f"state_dict[{key!r}] has averages of unknown layers: {', '.join(strange)}")
    differing = sorted(n for n in saved.keys() | shapes.keys() if saved.get(n) != shapes.get(n))
    if differing:
        raise CheckpointError(
            f"state_dict was saved for other masked layers: {', '.join(differing)} differ in name or "
            "shape. Build the model and the optimizer as they were when it was saved"
        )


def saved_notes(own: Mapping[str, Any], updates: Sequence[Update]) -> dict[str, dict[str, Any]]:
    """The notes of a state, by the name of the update; before states named updates, all shared them."""
    if "updates" not in own:
        return notes_by_name(own["notes"], updates)
    return {name: dict(notes) for name, notes in own["notes"].items()}
