"""Train a network by any method: the model, its optimizer, and what happens around rounds of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from sparsefx.cycle import Clock, LayerState, Timing, keep_largest
from sparsefx.cycle.constant_fan_in import constant_fan_in_mask
from sparsefx.errors import ArgumentError, CheckpointError
from sparsefx.masks import masked_weights
from sparsefx.methods.row import Method
from sparsefx.methods.snapshot import Snapshot
from sparsefx.parts import resolve
from sparsefx.pruning import prune
from sparsefx.regularisers import REGULARISERS, Regulariser
from sparsefx.rules import Rules
from sparsefx.scores.task import Batch, Loss
from sparsefx.selection import Selector
from sparsefx.sparse_optimizer import SparseOptimizer
from sparsefx.sparsify import sparsify

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

_NEVER = Timing(first=1.0)


class Training:
    """One run of a method, from the untrained network to masks that :func:`sparsefx.export` takes.

    The same loop runs every method::

        make = lambda parameters: SGD(parameters, lr=0.1, momentum=0.9)
        training = sparsefx.Training(method, net, make, steps=T, epoch_steps=n)
        for _ in training.rounds():  # once, for most methods
            for x, y in batches:  # training.steps of them
                training.optimizer.zero_grad()
                (loss(training.model(x), y) + training.penalty()).backward()
                training.optimizer.step()
        model = training.finish()

    Args:
        method: a row of :data:`sparsefx.methods.METHODS`, or one of your own.
        network: the untrained network; it is not changed.
        make_optimizer: makes an optimizer of the parameters it is given; called once a round.
        steps: optimizer steps of the first round.
        epoch_steps: optimizer steps of an epoch.
        dense: layers that stay dense, as in :func:`sparsefx.sparsify`.
        batches: pairs (inputs, targets) for methods that prune by a score that needs data.
        loss: ``(output, target)`` to the mean loss of a batch, for the same.
        samples: number of training samples, for methods whose loss divides by it.
        generator: CPU generator for what is random in the method; one seeded with 0 by default.

    Attributes:
        method: the method.
        model: the masked model; the same object throughout.
        optimizer: the optimizer of this round, a :class:`SparseOptimizer`.
        regulariser: what the method adds to the loss in this round, if anything.
        round: the number of this round, from 0.

    Raises:
        ArgumentError: an argument cannot be used, or the method needs ``batches`` or ``samples`` and there
            are none.

    Example:
        >>> import torch, sparsefx
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        >>> rigl = sparsefx.method("rigl", density=0.5, every=2)
        >>> training = sparsefx.Training(rigl, net, sgd, steps=10, epoch_steps=5)
        >>> for _ in training.rounds():
        ...     for _ in range(training.steps):
        ...         training.optimizer.zero_grad()
        ...         training.model(torch.randn(4, 8)).square().mean().backward()
        ...         _ = training.optimizer.step()
        >>> sum(int(m.mask.sum()) for m in sparsefx.masked_weights(training.finish()))
        40
    """

    def __init__(
        self,
        method: Method,
        network: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        steps: int,
        epoch_steps: int,
        dense: Selector | Iterable[Selector] = (),
        batches: Iterable[Batch] = (),
        loss: Loss = F.cross_entropy,
        samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("epoch_steps", epoch_steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name}={value!r} is not a whole number of at least 1")
        self.method = method
        self.round = 0
        self._make_optimizer, self._first_steps, self._epoch_steps = make_optimizer, steps, epoch_steps
        self._batches, self._loss, self._samples = batches, loss, samples
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._snapshot: Snapshot | None = None
        self.regulariser: Regulariser | None = None
        self.model = self._sparse(network, dense)
        self.optimizer = self._begin_round()

    def rounds(self) -> Iterator[int]:
        """The rounds that are left, this one first; between two the network is pruned or rewound."""
        while True:
            yield self.round
            if not self.next_round():
                return

    @property
    def steps(self) -> int:
        """Optimizer steps of this round; a rewound round lacks those before the point it was set back to."""
        rounds = self.method.rounds
        if rounds is None or self.round == 0:
            return self._first_steps
        return max(1, round(rounds.retraining * self._first_steps) - self._rewound_to)

    @property
    def first_step(self) -> int:
        """The step at which this round begins: where the learning rate's schedule takes up."""
        return self._rewound_to if self.round else 0

    @property
    def learning_rate(self) -> float:
        """Factor of the learning rate in this round."""
        rounds = self.method.rounds
        return 1.0 if rounds is None or self.round == 0 else rounds.learning_rate

    @property
    def is_last(self) -> bool:
        """Whether no round follows."""
        return self.method.rounds is None or self.round == self.method.rounds.count - 1

    def penalty(self) -> Tensor | float:
        """What the method adds to the mean loss of a batch; 0 for most."""
        return 0.0 if self.regulariser is None else self.regulariser.penalty()

    def next_round(self) -> bool:
        """End this round: prune and rewind as the method says, and begin the next; False if there is none."""
        rounds = self.method.rounds
        if rounds is None or self.is_last:
            return False
        self.round += 1
        if rounds.prunings:
            density = rounds.density(self.round, self.method.density)
            self._prune(density, rounds.score, rounds.scope, compensate=rounds.compensate)
        self.optimizer = self._begin_round()
        if self._snapshot is not None:
            self._snapshot.restore(self.model, self.optimizer)
        return True

    def finish(self) -> nn.Module:
        """Take the method's final decision and return the model, whose masks are final.

        Weights outside their masks are 0, so :func:`sparsefx.export` takes it as it is.
        """
        if self.regulariser is not None:
            self.regulariser.decide(self.method.density)
            self.regulariser = None
        elif self.method.densities is not None:
            self._thin_to_the_end()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beside the model's own state dict; readable by ``weights_only=True``."""
        return {
            "method": self.method.name,
            "round": self.round,
            "optimizer": self.optimizer.state_dict(),
            "regulariser": None if self.regulariser is None else self.regulariser.state_dict(),
            "snapshot": None if self._snapshot is None else self._snapshot.to_plain(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; load the model's own before.

        Raises:
            CheckpointError: it is of another method, or damaged.
        """
        try:
            name, round_, snapshot = (state_dict[key] for key in ("method", "round", "snapshot"))
            optimizer, regulariser = state_dict["optimizer"], state_dict["regulariser"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"state_dict is not one of a Training: {error!r}") from error
        if name != self.method.name:
            raise CheckpointError(f"state_dict is of method {name!r}, not {self.method.name!r}")
        if self.regulariser is not None:
            self.regulariser.detach()
        self.round = int(round_)
        self._snapshot = None if snapshot is None else Snapshot.from_plain(snapshot)
        self.optimizer = self._begin_round()
        self.optimizer.load_state_dict(optimizer)
        if self.regulariser is not None:
            self.regulariser.load_state_dict(regulariser)

    @property
    def _rewinds(self) -> bool:
        return self.method.rounds is not None and self.method.rounds.rewind is not None

    @property
    def _rewound_to(self) -> int:
        """The step that later rounds begin at."""
        rounds = self.method.rounds
        return 0 if rounds is None or rounds.rewind is None else round(rounds.rewind * self._first_steps)

    def _sparse(self, network: nn.Module, dense: Selector | Iterable[Selector]) -> nn.Module:
        """The network with its first masks."""
        method = self.method
        model = sparsify(
            network,
            method.first_density,
            distribution=method.distribution,
            dense=dense,
            generator=self._generator,
        )
        self.model = model
        if method.constant_fan_in:
            for masked in masked_weights(model):
                active = int(masked.mask.sum())
                mask = constant_fan_in_mask(masked.weight.shape, active, self._generator)
                masked.set_mask(mask.to(masked.weight.device))
        if method.score is not None:
            self._prune(method.density, method.score, "global", rounds=method.score_rounds)
        return model

    def _prune(self, density: float, score: str, scope: str, **options: Any) -> None:
        prune(
            self.model,
            density,
            score=score,
            scope=scope,
            batches=self._batches,
            loss=self._loss,
            generator=self._generator,
            **options,
        )

    def _begin_round(self) -> SparseOptimizer:
        """The optimizer of this round, and the regulariser, if the method has its say in it."""
        rounds = self.method.rounds
        is_dense = rounds is not None and rounds.trained_first and self.round == 0
        rules = Rules() if is_dense or (rounds and rounds.prunings) else self.method.rules()
        timing = self.method.timing if rules.updates else None
        optimizer = self._make_optimizer(self.model.parameters())
        self.regulariser = None if is_dense else self._make_regulariser()
        for group in [] if self.regulariser is None else self.regulariser.parameter_groups():
            optimizer.add_param_group(group)
        clock = Clock(_NEVER if timing is None else timing, self.steps, self._epoch_steps)
        sparse = SparseOptimizer(optimizer, self.model, rules, clock, generator=self._generator)
        sparse.register_step_post_hook(self._after_step)
        if self._rewinds and self.round == 0 and self._rewound_to == 0:
            self._snapshot = Snapshot.of(self.model, sparse)
        return sparse

    def _make_regulariser(self) -> Regulariser | None:
        name = self.method.regulariser
        if name is None:
            return None
        kind = resolve("regulariser", name, REGULARISERS)
        options = dict(self.method.options(self.method))
        if "samples" in signature(kind).parameters:
            if self._samples is None:
                raise ArgumentError(
                    f"samples: method {self.method.name!r} needs the number of training samples"
                )
            options.setdefault("samples", self._samples)
        return kind(self.model, **options)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        done = self.optimizer.steps_done
        if self.regulariser is not None:
            self.regulariser.after_step(min(1.0, done / self.steps))
        if self._rewinds and self.round == 0 and done == self._rewound_to:
            self._snapshot = Snapshot.of(self.model, self.optimizer)

    @torch.no_grad()
    def _thin_to_the_end(self) -> None:
        """Thin what no update has, because training was too short for one."""
        layers = masked_weights(self.model)
        wanted = round(self.method.density * sum(layer.mask.numel() for layer in layers))
        if sum(int(layer.mask.sum()) for layer in layers) <= wanted:
            return
        states = [LayerState(layer.name, layer.weight.detach(), layer.mask) for layer in layers]
        method = self.method
        for layer, outcome in zip(
            layers, keep_largest(states, method.density, method.thin_scope, method.distribution), strict=True
        ):
            layer.set_mask(outcome.mask)
