"""When a trainer's steps have cycles, and by which rules: so that a user need not count steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparsefx._common.seeds import all_ranks, given_generator
from sparsefx._common.values import check_count
from sparsefx.cycle import NEVER, Clock, DeferredSchedule, Schedule, Timing
from sparsefx.errors import ArgumentError
from sparsefx.masking.replicas import leave_packed_out
from sparsefx.methods import Method
from sparsefx.methods import method as named
from sparsefx.optim.sparse_optimizer import SparseOptimizer

_FEWEST = 10  # epochs from which on cycles go by epochs


@dataclass(frozen=True)
class Plan:
    """A method whose length of training is not known yet.

    Attributes:
        method: what happens at steps and cycles.
        spreads: whether a training of few epochs has cycles within its epochs.
        seed: of what is random; None draws one from torch's default generator.
        generator: for what is random, instead of a seed.
    """

    method: Method
    spreads: bool
    seed: int | None = None
    generator: torch.Generator | None = None

    @classmethod
    def of(
        cls,
        method: str | Method,
        changes: dict[str, Any],
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """The plan for a method by name, or of one's own, with some fields changed.

        Raises:
            ArgumentError: the method needs more than an optimizer, or a field or the seed cannot be used.
        """
        given_generator(seed, generator)
        if isinstance(method, Method):
            row, spreads = method.with_(**changes), False
        else:
            row, spreads = named(method, **changes), "every" not in changes
        needs = _needs(row)
        if needs:
            raise ArgumentError(
                f"method={row.name!r} {needs}, and that takes more than plain steps; "
                "run it by sparsefx.Training"
            )
        return cls(row, spreads, seed, generator)

    def schedule(self, steps: int, epoch_steps: int, *, rehearsal: bool = False) -> Clock:
        """When there are cycles in a training of so many optimizer steps.

        Args:
            steps: optimizer steps in all.
            epoch_steps: optimizer steps of an epoch.
            rehearsal: a few steps to see that the code runs; a cycle after each, if the method has any.

        Raises:
            ArgumentError: there would be none.
        """
        timing = self.method.timing
        if timing is None:
            return Clock(NEVER, steps, epoch_steps)
        if rehearsal:
            return Clock(Timing(every=1), steps + 1, epoch_steps)
        if self.spreads and timing.every == "epoch" and steps < _FEWEST * epoch_steps:
            epoch_steps = math.ceil(steps / _FEWEST)
        schedule = Clock(timing, steps, epoch_steps)
        if not schedule.is_ever_due:
            raise ArgumentError(
                f"every={timing.every!r}: method {self.method.name!r} has no cycle in {steps} optimizer "
                f"steps, {epoch_steps} of them an epoch; train longer, or set every= to fewer steps"
            )
        return schedule

    def optimizer(self, optimizer: Optimizer, model: nn.Module, schedule: Schedule) -> SparseOptimizer:
        """The optimizer that follows it; where there are several ranks, all of them train the same masks.

        Trainers wrap the model by DistributedDataParallel after this, which leaves packed weights out.

        Args:
            optimizer: holds the masked weights of ``model``.
            model: a sparsified model.
            schedule: when there are cycles.

        Raises:
            ArgumentError: the model has no masked weights, or the optimizer lacks some.
        """
        if isinstance(model, nn.Module):
            leave_packed_out(model)
        return SparseOptimizer(
            optimizer,
            model,
            self.method.rules(),
            schedule,
            seed=self.seed,
            generator=self.generator,
            group=next(iter(all_ranks()), None),
        )


def told_by_trainer() -> DeferredSchedule:
    """The schedule of a training whose length its trainer tells when it begins."""
    return DeferredSchedule(
        "callbacks: the SparseCallback that made this optimizer was not told that training began; "
        "leave it among the trainer's callbacks. Loading a checkpoint of a model that is sharded over "
        "processes steps the optimizer, too: resume by a sparsefx.TrainingState instead"
    )


def sparse_optimizer(
    optimizer: Optimizer,
    model: nn.Module,
    method: str | Method = "sparse-momentum",
    *,
    steps: int,
    epoch_steps: int,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **changes: Any,
) -> SparseOptimizer:
    """Wrap an optimizer so that it trains by a method, with cycles in its own steps.

    There is nothing to call but ``step()``. By default a cycle comes at the end of every epoch but the
    last; in a training of fewer than ten epochs, after every tenth of it.

    Args:
        optimizer: holds every trainable masked weight of ``model``.
        model: a sparsified model.
        method: the name of a method, or a row of one's own; one that keeps the density.
        steps: optimizer steps of the whole training (``epochs * epoch_steps``).
        epoch_steps: optimizer steps of an epoch: batches over the batches that gradients are accumulated for.
        seed: seed of what is random; drawn from torch's default generator by default, on the first rank for
            all.
        generator: CPU generator for what is random, instead of a seed.
        **changes: fields of the method, as in :func:`sparsefx.method`: ``every=100`` for a cycle every
            100 steps, ``prune_rate=0.3``.

    Raises:
        ArgumentError: an argument cannot be used, or the method needs more than an optimizer.

    Example:
        >>> import torch, sparsefx
        >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 8)), density=0.25)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = sparse_optimizer(sgd, model, steps=20, epoch_steps=10)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 8)).sum().backward()
        ...     optimizer.step()
        >>> [record.step for record in optimizer.history]
        [2, 4, 6, 8, 10, 12, 14, 16, 18]
    """
    check_count("steps", steps)
    check_count("epoch_steps", epoch_steps)
    plan = Plan.of(method, changes, seed, generator)
    return plan.optimizer(optimizer, model, plan.schedule(steps, epoch_steps))


def _needs(method: Method) -> str:
    """What a method needs beside plain steps of an optimizer; nothing for most that keep the density."""
    first, updates = method.first_masks, method.updates
    gradual = updates is not None and updates.falling is not None
    for needed, what in (
        (not first.masks, "masks no weights"),
        (method.rounds is not None, "trains in rounds"),
        (method.penalty is not None, "adds to the loss"),
        (first.score is not None, "scores the dense network first"),
        (first.constant_fan_in, "has first masks of its own"),
        (method.weights.memory is not None, "stores inactive weights"),
        (gradual or method.sparsity.first != method.density, "begins at another density than it ends"),
        (updates is not None and updates.timing.at_start, "updates its masks before the first step"),
    ):
        if needed:
            return what
    return ""
