"""Sparse training in a loop that Accelerate prepares: the optimizer, and a log to its trackers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparsefx.errors import ArgumentError, MissingPackageError
from sparsefx.integrations import plan
from sparsefx.integrations.metrics import CycleLog
from sparsefx.methods import Method
from sparsefx.optim.sparse_optimizer import SparseOptimizer

try:
    from accelerate import Accelerator
except ImportError as error:
    raise MissingPackageError(
        "sparsefx.integrations.accelerate needs a package: pip install accelerate"
    ) from error


def sparse_optimizer(
    accelerator: Accelerator,
    optimizer: Optimizer,
    model: nn.Module,
    batches: Any,
    method: str | Method = "sparse-momentum",
    *,
    epochs: int,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **changes: Any,
) -> SparseOptimizer:
    """Wrap an optimizer before ``accelerator.prepare`` takes it; steps are counted from the data.

    Args:
        accelerator: says how many processes share the batches, and over how many gradients accumulate.
        optimizer: holds every trainable masked weight of ``model``.
        model: a sparsified model.
        batches: what an epoch goes through, of known length, before or after ``accelerator.prepare``.
        method: see :func:`sparsefx.integrations.sparse_optimizer`, also for when there are cycles by default.
        epochs: how often training goes through ``batches``.
        seed: seed of what is random; drawn from torch's default generator by default, on the first rank for
            all.
        generator: CPU generator for what is random, instead of a seed.
        **changes: fields of the method, as in :func:`sparsefx.method`.

    Raises:
        ArgumentError: an argument cannot be used, or the length of ``batches`` is not known.
    """
    if isinstance(optimizer, Optimizer) and getattr(optimizer, "_is_accelerate_prepared", False):
        raise ArgumentError("optimizer went through accelerator.prepare() already; wrap it before")
    try:
        count = len(batches)
    except TypeError as error:
        raise ArgumentError(
            f"batches: {type(batches).__name__} has no length; wrap the optimizer by "
            "sparsefx.integrations.sparse_optimizer(..., steps=..., epoch_steps=...)"
        ) from error
    if not getattr(batches, "_is_accelerate_prepared", False) and not accelerator.split_batches:
        count = math.ceil(count / accelerator.num_processes)
    epoch_steps = math.ceil(count / accelerator.gradient_accumulation_steps)
    return plan.sparse_optimizer(
        optimizer,
        model,
        method,
        steps=epochs * epoch_steps,
        epoch_steps=epoch_steps,
        seed=seed,
        generator=generator,
        **changes,
    )


def cycle_log(accelerator: Accelerator, optimizer: Optimizer, *, layers: bool = True) -> CycleLog:
    """A log of cycles for ``accelerator.log``; call its ``update()`` after the optimizer's steps.

    Args:
        accelerator: has the trackers; :func:`cycle_metrics` says what they get.
        optimizer: the sparse one, before or after ``accelerator.prepare``.
        layers: whether to log each masked layer, too.
    """

    def write(metrics: Mapping[str, float], step: int) -> None:
        accelerator.log(dict(metrics), step=step)

    return CycleLog(optimizer, write, layers=layers)
