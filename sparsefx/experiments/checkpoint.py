"""Checkpoints of a run: one file, whole or not there, with the state of every random generator."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from sparsefx.errors import CheckpointError
from sparsefx.experiments.record import canonical


def save_checkpoint(path: Path, state: dict[str, Any], device: str) -> Path:
    """Write a state beside the file and move it there.

    Args:
        path: the file; its folder is made.
        state: tensors and plain data.
        device: whose random generator is saved beside the CPU's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    generators = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({**state, "generators": generators}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path, configuration: dict[str, Any], device: str) -> dict[str, Any]:
    """Read a state and set the random generators to what they were.

    Args:
        path: the file.
        configuration: what it must be a checkpoint of.
        device: where its tensors go.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        found, generators = state["configuration"], state.pop("generators")
    except (RuntimeError, KeyError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no checkpoint of a run, or damaged: {error}") from error
    if canonical(found) != canonical(configuration):
        changed = [
            name for name in configuration if canonical(found.get(name)) != canonical(configuration[name])
        ]
        raise CheckpointError(f"{path} is of another run: {', '.join(changed)} differ; choose another folder")
    torch.set_rng_state(generators["cpu"].cpu())
    if "cuda" in generators:
        torch.cuda.set_rng_state(generators["cuda"].cpu(), device)
    return dict(state)
