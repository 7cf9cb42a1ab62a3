"""The paper's method as a wrapper around any optimizer: the row ``sparse-momentum``, by counted cycles."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparsefx._common.values import check_count
from sparsefx.cycle import CountedCycles, CycleRecord, Decay, Grow, Prune, Redistribute
from sparsefx.methods.presets import method
from sparsefx.optim.gradient_window import Window
from sparsefx.optim.sparse_optimizer import SparseOptimizer


class SparseMomentum(SparseOptimizer):
    """Wrap an optimizer so that training keeps a sparse model sparse and moves its weights about.

    ``step()`` steps the wrapped optimizer and sets weights outside their mask back to 0. ``cycle()``
    removes the smallest weights, decides how many each layer regrows, and regrows them where the
    momentum is largest (Dettmers & Zettlemoyer 2019). The number of active weights stays the same.

    Learning-rate schedulers, ``GradScaler``, gradient clipping and checkpointing take the wrapper for
    an ordinary optimizer: parameter groups and state are those of the wrapped one. The optimizer's
    buffers at inactive positions are kept; they are the momentum that decides what grows.

    A mask costs one byte a weight and the momentum nothing, unless the optimizer keeps none (plain
    SGD, Adafactor, LBFGS): then, if a part of the cycle needs it, the wrapper keeps an
    exponential average of the gradient (decay 0.9), 4 bytes a weight and one pass over it a step.

    Args:
        optimizer: holds every trainable masked weight of ``model``.
        model: a sparsified model, also one wrapped by ``torch.compile`` or DistributedDataParallel.
        cycles: how many cycles training will have, usually its epochs. The k-th runs at the decay's
            rate for ``k / cycles``, which for the default is 0 at the last; a cycle after that warns, once.
        prune_rate: fraction of a layer's active weights to remove in a cycle, before decay, in [0, 1].
        decay: ``"cosine"``, ``"linear"``, ``"constant"``, or a callable ``(prune_rate, progress)``.
        every: call ``cycle()`` every so many steps; None leaves it to you, once an epoch. ``cycles``
            counts these calls: ``cycles=total_steps // every``.
        prune: ``"magnitude"`` or another name in ``sparsefx.cycle.PRUNE``, or a callable
            ``(layer, count, generator)`` that returns a bool tensor of the weight's shape, True at exactly
            ``count`` active positions. ``layer`` has ``weight``, ``mask``, ``momentum``, ``gradient`` and
            ``name``.
        redistribute: ``"momentum"``, ``"magnitude"``, ``"nonzeros"``, ``"none"`` or a callable ``(layers)``.
        grow: ``"momentum"``, ``"gradient"``, ``"random"``, ``"momentum_neuron"`` or another name in
            ``sparsefx.cycle.GROW``, or a callable ``(layer, count, generator)`` that returns a bool tensor,
            True at exactly ``count`` inactive positions.
        seed: seed of what is random. By default it is drawn from torch's default generator, so that
            ``torch.manual_seed`` decides; where torch.distributed is initialised, by the first rank for all
            that train the same masks, so make the optimizer on all of them.
        generator: CPU generator for what is random, instead of a seed; seeded alike on every rank.
        group: the process group whose ranks train the same masks; by default that of the
            DistributedDataParallel around ``model``, if there is one. Every cycle checks that they do.
        window: of an accelerated model (:func:`sparsefx.accelerate`), how many steps before each cycle
            compute the gradients of inactive weights. ``"auto"``: as many as the momentum takes to forget
            to 1%, which for 0.9 is 44. Where ``every`` is None and until the first cycle, all do; afterwards
            cycles are expected as far apart as the last two.

    Attributes:
        history: a :class:`CycleRecord` for every cycle so far.

    Raises:
        ArgumentError: an argument cannot be used, the model has no masked weights, or a trainable one
            is missing from the optimizer.

    Example:
        >>> import torch, sparsefx
        >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 8)), density=0.25)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = sparsefx.SparseMomentum(sgd, model, cycles=10)
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> record = optimizer.cycle()
        >>> record.layers[0].pruned, record.layers[0].active
        (8, 16)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        cycles: int,
        prune_rate: float = 0.5,
        decay: str | Decay = "cosine",
        every: int | None = None,
        prune: str | Prune = "magnitude",
        redistribute: str | Redistribute = "momentum",
        grow: str | Grow = "momentum",
        seed: int | None = None,
        generator: torch.Generator | None = None,
        group: Any = None,
        window: Window = "auto",
    ) -> None:
        check_count("cycles", cycles)
        if every is not None:
            check_count("every", every)
        row = method("sparse-momentum", prune=prune, redistribute=redistribute, grow=grow, decay=decay)
        # A row that removes nothing is a mistake; a training may still hold its masks at rate 0.
        rules = replace(row.rules(), prune_rate=prune_rate)
        schedule = CountedCycles(cycles, every)
        super().__init__(
            optimizer, model, rules, schedule, seed=seed, generator=generator, group=group, window=window
        )
        self._cycles = cycles

    def _after_cycle(self, record: CycleRecord) -> None:
        if record.cycle == self._cycles + 1 and not record.prune_rate:
            warnings.warn(
                f"cycle {record.cycle} of cycles={self._cycles}: the prune rate has come to 0 and masks "
                "change no more; give cycles= as many as the whole training will have (usually its epochs)",
                stacklevel=5,
            )
