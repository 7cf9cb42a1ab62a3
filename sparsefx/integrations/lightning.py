"""Sparse training by a Lightning Trainer: one callback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from sparsefx.cycle import DeferredSchedule
from sparsefx.errors import ArgumentError, MissingPackageError
from sparsefx.integrations.metrics import CycleLog
from sparsefx.integrations.plan import Plan, told_by_trainer
from sparsefx.masking.averaged_model import average_by_masks
from sparsefx.masking.masks import apply_masks
from sparsefx.masking.packing import unpack_all
from sparsefx.masking.replicas import leave_packed_out
from sparsefx.methods import Method
from sparsefx.optim.sparse_optimizer import SparseOptimizer

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingPackageError(
        "sparsefx.integrations.lightning needs a package: pip install lightning"
    ) from error


class SparseCallback(Callback):
    """Keeps the sparsified layers of a LightningModule sparse and moves their weights about.

    When training begins it wraps the module's optimizer, which ``configure_optimizers`` returns as before,
    so that cycles happen within its steps. Checkpoints, schedulers, clipping, accumulation and precision
    are Lightning's, unchanged. After each cycle the metrics of :func:`cycle_metrics` go to all of the
    trainer's loggers. Averages of weights (Lightning's ``WeightAveraging``) have the present masks, as those
    of :class:`sparsefx.AveragedModel`.

    A module that wants several optimizers, or cycles of its own, wraps them itself in
    ``configure_optimizers``; the callback then only logs.

    Args:
        method: the name of a method, or a row of one's own; see :func:`sparse_optimizer`, also for when
            there are cycles by default.
        layers: whether to log each masked layer, too.
        seed: seed of what is random; drawn from torch's default generator by default, on the first rank for
            all.
        generator: CPU generator for what is random, instead of a seed.
        **changes: fields of the method, as in :func:`sparsefx.method`: ``every=100``, ``prune_rate=0.3``.

    Raises:
        ArgumentError: an argument cannot be used, or the method needs more than an optimizer. When training
            begins: its length is not known, it has no cycle, or the optimizer cannot be wrapped.

    Example:
        >>> trainer = Trainer(callbacks=[SparseCallback(every=100)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        method: str | Method = "sparse-momentum",
        *,
        layers: bool = True,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **changes: Any,
    ) -> None:
        self._plan = Plan.of(method, changes, seed, generator)
        self._layers = layers
        self._schedule: DeferredSchedule | None = None
        self._logs: list[CycleLog] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have DistributedDataParallel, which wraps the module next, leave packed weights out."""
        leave_packed_out(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the optimizer: it is made by now, and its checkpoint is not loaded yet."""
        for average in _averages(trainer):
            average_by_masks(average)
        if any(isinstance(optimizer, SparseOptimizer) for optimizer in trainer.optimizers):
            self._schedule = None
            return
        if len(trainer.optimizers) != 1:
            raise ArgumentError(
                f"configure_optimizers returned {len(trainer.optimizers)} optimizers, and SparseCallback "
                "wraps a single one; wrap those that hold masked weights there, by sparsefx.SparseMomentum("
                "optimizer, its_part_of_the_model, cycles=..., every=...)"
            )
        self._schedule = told_by_trainer()
        trainer.optimizers = [self._plan.optimizer(trainer.optimizers[0], pl_module, self._schedule)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the cycles and log from here on: a checkpoint is loaded by now, and the data's length known.

        Asked for it earlier, Lightning would begin with the data before the checkpoint says where.
        """
        if self._schedule is not None:
            rehearsal = bool(trainer.fast_dev_run)
            self._schedule.begin(self._plan.schedule(*_length(trainer), rehearsal=rehearsal))

        def write(metrics: Mapping[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step)

        sparse = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, SparseOptimizer)]
        self._logs = [CycleLog(optimizer, write, layers=self._layers) for optimizer in sparse]

    def on_train_batch_end(self, *_: Any) -> None:
        """Log the cycle, if there was one."""
        for log in self._logs:
            log.update()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make packed weights dense for stochastic weight averaging, which reads them between epochs."""
        unpack_all(pl_module)

    def on_train_end(self, *_: Any) -> None:
        """Log a cycle that came after the last batch."""
        self.on_train_batch_end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mask what the module holds in the end: stochastic weight averaging averages over several masks."""
        apply_masks(pl_module)


def _averages(trainer: Trainer) -> list[AveragedModel]:
    """The averages that callbacks of this trainer keep; Lightning has no public name for them."""
    kept = (getattr(callback, "_average_model", None) for callback in trainer.callbacks)
    return [average for average in kept if type(average) is AveragedModel]


def _length(trainer: Trainer) -> tuple[int, int]:
    """Optimizer steps of the training, and of an epoch."""
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise ArgumentError(
            f"max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}: SparseCallback must know how "
            "long training will be; give the Trainer one of them"
        )
    batches = trainer.num_training_batches  # infinite where the length of the data is not known
    epoch_steps = steps if batches == math.inf else math.ceil(batches / trainer.accumulate_grad_batches)
    return int(steps), int(epoch_steps)
