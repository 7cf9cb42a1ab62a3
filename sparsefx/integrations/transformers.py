"""Sparse training by a Hugging Face Trainer: one callback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparsefx.errors import ArgumentError, MissingPackageError
from sparsefx.integrations.metrics import CycleLog
from sparsefx.integrations.plan import Plan, told_by_trainer
from sparsefx.methods import Method
from sparsefx.optim.sparse_optimizer import SparseOptimizer

try:
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from transformers.pytorch_utils import Conv1D
except ImportError as error:
    raise MissingPackageError(
        "sparsefx.integrations.transformers needs packages: pip install transformers accelerate"
    ) from error


class SparseCallback(TrainerCallback):
    """Keeps a Trainer's sparsified model sparse and moves its weights about.

    Made from the trainer and added to it; the trainer may be of any subclass::

        trainer = Trainer(sparsefx.sparsify(model, density=0.1, trace=False), args, ...)
        trainer.add_callback(SparseCallback(trainer))
        trainer.train()

    The optimizer is the one that the trainer's arguments (or its ``optimizers``) ask for, wrapped when the
    trainer creates it; cycles happen within its steps. After each cycle the metrics of
    :func:`cycle_metrics` go through ``trainer.log``. If ``optimizers`` brings a :class:`SparseOptimizer`,
    such as :class:`sparsefx.SparseMomentum`, that one trains by its own schedule, and is logged.

    Args:
        trainer: has the sparsified model.
        method: the name of a method, or a row of one's own; see :func:`sparse_optimizer`, also for when
            there are cycles by default.
        layers: whether to log each masked layer, too.
        seed: seed of what is random; drawn from torch's default generator by default, on the first rank for
            all.
        generator: CPU generator for what is random, instead of a seed.
        **changes: fields of the method, as in :func:`sparsefx.method`: ``every=100``, ``prune_rate=0.3``.

    Raises:
        ArgumentError: an argument cannot be used, or the method needs more than an optimizer. When training
            begins: it has no cycle, or the optimizer cannot be wrapped.
    """

    def __init__(
        self,
        trainer: Trainer,
        method: str | Method = "sparse-momentum",
        *,
        layers: bool = True,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **changes: Any,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise ArgumentError(
                f"trainer must be a transformers.Trainer, not {type(trainer).__name__}; make it first, then "
                "trainer.add_callback(SparseCallback(trainer))"
            )
        self._trainer = trainer
        self._plan = Plan.of(method, changes, seed, generator)
        self._layers = layers
        self._schedule = told_by_trainer()
        self._mine: SparseOptimizer | None = None
        self._log: CycleLog | None = None
        self._create = trainer.create_optimizer
        trainer.create_optimizer = self._create_sparse

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plan the cycles and log from here on: a checkpoint is loaded by now."""
        if self._mine is not None:  # else the optimizer has a schedule of its own
            batches, steps = _length(kwargs["train_dataloader"]), state.max_steps
            epoch_steps = steps if batches is None else math.ceil(batches / args.gradient_accumulation_steps)
            self._schedule.begin(self._plan.schedule(steps, epoch_steps))
        self._log = CycleLog(self._trainer.optimizer, self._write, layers=self._layers)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Log the cycle, if there was one."""
        if self._log is not None:
            self._log.update()

    def _write(self, metrics: Mapping[str, float], step: int) -> None:
        self._trainer.log(dict(metrics))

    def _create_sparse(self, model: Any = None) -> Optimizer:
        """What the trainer creates, wrapped; a second training has a new schedule, like the learning rate."""
        trainer = self._trainer
        inside = self._create() if model is None else self._create(model)
        while not isinstance(inside, SparseOptimizer) and hasattr(inside, "optimizer"):
            inside = inside.optimizer  # Accelerate's wrapper, from the training before
        if isinstance(inside, SparseOptimizer) and inside is not self._mine:
            return inside
        plain = inside.wrapped if isinstance(inside, SparseOptimizer) else inside
        self._mine = self._plan.optimizer(plain, trainer.model if model is None else model, self._schedule)
        trainer.optimizer = self._mine
        return self._mine


def conv1d_to_linear(model: nn.Module) -> nn.Module:
    """Replace each ``Conv1D`` of GPT-2 and similar models by an equal ``nn.Linear``.

    Without it :func:`sparsefx.sparsify` finds nothing to mask in GPT-2: ``Conv1D`` is a class of Hugging Face
    that holds the weight of a linear layer transposed. ``from_pretrained`` would misread square weights of
    the converted model. Load its checkpoints by ``load_state_dict``, into a model that was also converted.

    Args:
        model: a model with its weights; it is changed in place.

    Returns:
        The same model; it computes the same function.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name, module in found:
        inputs, outputs = module.weight.shape
        linear = nn.Linear(inputs, outputs, device="meta").train(module.training)
        linear.weight = nn.Parameter(module.weight.detach().t().contiguous(), module.weight.requires_grad)
        linear.bias = module.bias
        model.set_submodule(name, linear)
    return model


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:  # a stream
        return None
