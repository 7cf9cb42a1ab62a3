"""Checkpoints of a run: its state with that of every random generator, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from sparsefx.errors import CheckpointError
from sparsefx.experiments.ledger.files import write_whole
from sparsefx.experiments.ledger.identity import canonical

_MAGIC = b"sparsefx run 1\n"
_DIGEST = hashlib.sha256().digest_size


def save_checkpoint(path: Path, state: dict[str, Any], device: str) -> Path:
    """Write a state, with a checksum, whole or not at all.

    Args:
        path: the file; its folder is made.
        state: tensors and plain data.
        device: whose random generator is saved beside the CPU's.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    generators = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    content = saved({**state, "generators": generators})
    return write_whole(path, _MAGIC + hashlib.sha256(content).digest() + content)


def saved(state: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_checkpoint(path: Path, configuration: dict[str, Any], device: str) -> dict[str, Any]:
    """Read a state; :func:`set_generators` takes its ``generators`` once all else is in place.

    Args:
        path: the file.
        configuration: what it must be a checkpoint of.
        device: where its tensors go.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    try:
        data = path.read_bytes()
        head, rest = data[: len(_MAGIC)], data[len(_MAGIC) :]
        digest, content = rest[:_DIGEST], rest[_DIGEST:]
        if head != _MAGIC or digest != hashlib.sha256(content).digest():
            raise CheckpointError(f"{path} is no checkpoint of a run, or damaged; delete it to begin anew")
        state = dict(torch.load(io.BytesIO(content), map_location=device, weights_only=True))
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    saved_with = state.get("configuration", {})
    changed = [
        name for name in configuration if canonical(saved_with.get(name)) != canonical(configuration[name])
    ]
    if changed:
        raise CheckpointError(f"{path} is of another run: {', '.join(changed)} differ; choose another folder")
    return state


def set_generators(generators: dict[str, torch.Tensor], device: str) -> None:
    """Set the random generators to what they were when a checkpoint was written.

    Args:
        generators: the states, uint8 vectors, by kind of device.
        device: whose generator is set beside the CPU's.
    """
    torch.set_rng_state(generators["cpu"].cpu())
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"].cpu(), device)
