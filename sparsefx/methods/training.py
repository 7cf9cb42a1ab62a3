"""Train a network by any method: the model, its optimizer, and what happens around rounds of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from sparsefx._common.seeds import all_ranks, cpu_generator
from sparsefx._common.values import check_count
from sparsefx.accelerate import accelerate
from sparsefx.cycle import NEVER, Clock
from sparsefx.errors import ArgumentError, CheckpointError
from sparsefx.masking.selection import Selector
from sparsefx.methods.beginning import first_model, first_regulariser, prune_to_density
from sparsefx.methods.rounds import RoundPlan
from sparsefx.methods.row import Method
from sparsefx.methods.snapshot import Snapshot
from sparsefx.optim.gradient_window import Window
from sparsefx.optim.rules import Rules
from sparsefx.optim.sparse_optimizer import SparseOptimizer
from sparsefx.pruning.prune import prune
from sparsefx.regularisers import Regulariser
from sparsefx.scores.scoring_context import Batch, Loss

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


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
        seed: seed of what is random in the method, its first masks included. By default it is drawn from
            torch's default generator, so that ``torch.manual_seed`` decides; where torch.distributed is
            initialised, by the first rank for all.
        generator: CPU generator for what is random in the method, instead of a seed.
        kernels: ``"auto"`` or ``"sparse"`` train by sparse kernels, as :func:`sparsefx.accelerate` says;
            methods with a regulariser refuse them.
        example_inputs: positional arguments of the network, of a batch as in training, for these.
        window: as of :class:`sparsefx.SparseOptimizer`, for these.

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
        seed: int | None = None,
        generator: torch.Generator | None = None,
        kernels: Literal["dense", "auto", "sparse"] = "dense",
        example_inputs: Sequence[Any] | None = None,
        window: Window = "auto",
    ) -> None:
        for name, value in (("steps", steps), ("epoch_steps", epoch_steps)):
            check_count(name, value)
        _check(method, make_optimizer)
        _check_kernels(method, kernels, example_inputs)
        self.method = method
        self.round = 0
        self._plan = RoundPlan(method.rounds, steps)
        self._make_optimizer, self._epoch_steps = make_optimizer, epoch_steps
        self._batches, self._loss, self._samples = batches, loss, samples
        self._generator = cpu_generator(seed, generator, all_ranks())
        self._snapshot: Snapshot | None = None
        self.regulariser: Regulariser | None = None
        self._penalised = False
        self._window = window
        self.model = first_model(method, network, dense, self._generator, self._prune_by_first_score)
        if kernels != "dense":
            assert example_inputs is not None
            self.model = accelerate(self.model, example_inputs, kernels=kernels)
        self.optimizer = self._begin_round()
        self._update_at_start()
        if self._plan.rewinds and self._plan.rewound_to == 0:
            self._snapshot = Snapshot.of(self.model, self.optimizer)

    def rounds(self) -> Iterator[int]:
        """The rounds that are left, this one first; between two the network is pruned or rewound."""
        while True:
            yield self.round
            if not self.next_round():
                return

    @property
    def steps(self) -> int:
        """Optimizer steps of this round; a rewound round lacks those before the point it was set back to."""
        return self._plan.steps(self.round)

    @property
    def first_step(self) -> int:
        """The step at which this round begins, where the learning rate's schedule takes up."""
        return self._plan.first_step(self.round)

    @property
    def learning_rate(self) -> float:
        """Factor of the learning rate in this round."""
        return self._plan.learning_rate(self.round)

    @property
    def is_last(self) -> bool:
        """Whether no round follows."""
        return self.round >= self._plan.count - 1

    def penalty(self) -> Tensor | float:
        """What the method adds to the mean loss of a batch; 0 for most."""
        self._penalised = True
        return 0.0 if self.regulariser is None else self.regulariser.penalty()

    def next_round(self) -> bool:
        """End this round: prune and rewind as the method says, and begin the next; False if there is none."""
        rounds = self.method.rounds
        if rounds is None or self.is_last:
            return False
        if self._plan.rewinds and self._snapshot is None:
            raise ArgumentError(
                f"rewind={rounds.rewind!r}: this round ended before step {self._plan.rewound_to}, to which "
                "later ones go back; train it for all its steps"
            )
        if rounds.prunings:
            density = rounds.density(self.round + 1, self.method.density)
            self._prune(self.model, density, rounds.score, rounds.scope, compensate=rounds.compensate)
        if self._snapshot is not None:
            self._snapshot.restore(self.model)
        if self.regulariser is not None:
            self.regulariser.detach()
        self.round += 1
        self.optimizer.retire(f"round {self.round} has begun with a new optimizer: training.optimizer")
        self.optimizer = self._begin_round()
        if self._snapshot is not None:
            self._snapshot.restore_optimizer(self.optimizer)
        self._update_at_start()
        return True

    def finish(self) -> nn.Module:
        """Take the method's final decision and return the model, whose masks are final.

        Weights outside their masks are 0, so :func:`sparsefx.export` takes it as it is.

        Raises:
            ArgumentError: rounds of training are left.

        Warns:
            UserWarning: the round was shorter than it should be, so schedules have not ended.
        """
        if not self.is_last:
            raise ArgumentError(
                f"round {self.round + 1} of {self._plan.count}: method {self.method.name!r} is not done; go "
                "through training.rounds(), or call next_round() after each round"
            )
        done = self.optimizer.steps_done
        if done < self.steps:
            warnings.warn(
                f"finished after {done} of {self.steps} steps; schedules had not ended", stacklevel=2
            )
        if self.regulariser is not None:
            self.regulariser.decide(self.method.density)
            self.regulariser = None
        elif self.method.updates is not None and self.method.updates.falling is not None:
            prune_to_density(self.model, self.method.sparsity, self.method.updates.falling.thin_scope)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beside the model's own state dict; readable by ``weights_only=True``."""
        return {
            "method": self._identity,
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
        if dict(name) != self._identity:
            raise CheckpointError(f"state_dict is of method {name}, not {self._identity}")
        before = dict(vars(self))
        if self.regulariser is not None:
            self.regulariser.detach()
        try:
            self.round = int(round_)
            self._snapshot = None if snapshot is None else Snapshot.from_plain(snapshot)
            with torch.random.fork_rng(
                devices=()
            ):  # regularisers draw where they begin, not where they go on
                self.optimizer = self._begin_round()
            self.optimizer.load_state_dict(optimizer)
            if self.regulariser is not None:
                self.regulariser.load_state_dict(regulariser)
        except BaseException:
            if self.regulariser is not None and self.regulariser is not before["regulariser"]:
                self.regulariser.detach()
            vars(self).update(before)
            if self.regulariser is not None:
                self.regulariser.attach()
            raise

    @property
    def _identity(self) -> dict[str, Any]:
        """What a state must be of."""
        return {"name": self.method.name, "density": self.method.density, "rounds": self._plan.count}

    def _prune_by_first_score(self, model: nn.Module) -> None:
        first = self.method.first_masks
        assert first.score is not None
        self._prune(model, self.method.density, first.score, "global", rounds=first.score_rounds)

    def _prune(self, model: nn.Module, density: float, score: str, scope: str, **options: Any) -> None:
        prune(
            model,
            density,
            score=score,
            scope=scope,
            batches=self._batches,
            loss=self._loss,
            generator=self._generator,
            distribution=self.method.sparsity.distribution if scope == "layer" else None,
            **options,
        )

    def _update_at_start(self) -> None:
        """The update before the first step of a method that begins with one."""
        timing = self.method.timing
        if timing is not None and timing.at_start and self.optimizer.rules.updates:
            self.optimizer.cycle()

    def _begin_round(self) -> SparseOptimizer:
        """The optimizer of this round, and the regulariser, if the method has its say in it."""
        rounds = self.method.rounds
        is_dense = self._plan.is_dense(self.round)
        rules = Rules() if is_dense or (rounds and rounds.prunings) else self.method.rules()
        timing = self.method.timing if rules.updates else None
        optimizer = self._make_optimizer(self.model.parameters())
        self.regulariser = None if is_dense else first_regulariser(self.method, self.model, self._samples)
        for group in [] if self.regulariser is None else self.regulariser.parameter_groups():
            optimizer.add_param_group(group)
        schedule = Clock(NEVER if timing is None else timing, self.steps, self._epoch_steps)
        if rules.updates and not schedule.is_ever_due:
            warnings.warn(
                f"method {self.method.name!r} updates its masks at no step of {self.steps}: "
                f"{schedule.timing}; train longer, or set every=",
                stacklevel=4,
            )
        return SparseOptimizer(
            optimizer,
            self.model,
            rules,
            schedule,
            generator=self._generator,
            after_step=self._after_step,
            window=self._window,
        )

    def _after_step(self) -> None:
        done = self.optimizer.steps_done
        if self.regulariser is not None:
            self.regulariser.after_step(min(1.0, done / self.steps))
            if not self._penalised:
                warnings.warn(
                    f"training.penalty() was not called in step {done}; method {self.method.name!r} needs "
                    "it: (loss + training.penalty()).backward()",
                    stacklevel=4,
                )
        self._penalised = False
        if self._plan.rewinds and self._snapshot is None and done >= self._plan.rewound_to:
            self._snapshot = Snapshot.of(self.model, self.optimizer)


def _check_kernels(method: Method, kernels: str, example_inputs: object) -> None:
    if kernels not in ("dense", "auto", "sparse"):
        raise ArgumentError(f"kernels={kernels!r} is none of 'dense', 'auto', 'sparse'")
    if kernels == "dense":
        return
    if method.penalty is not None:
        raise ArgumentError(
            f"kernels={kernels!r}: the regulariser of method {method.name!r} computes weights anew at every "
            "step, which sparse kernels do not see; pass kernels='dense'"
        )
    if example_inputs is None:
        raise ArgumentError(
            f"kernels={kernels!r} needs example_inputs=, positional arguments of the network, e.g. (x,)"
        )


def _check(method: object, make_optimizer: object) -> None:
    if not isinstance(method, Method):
        raise ArgumentError(f"method={method!r} is no Method; pass sparsefx.method('rigl', density=0.1)")
    if method.first_masks.width:
        raise ArgumentError(
            f"method {method.name!r} needs a narrower network, not masks: `sparsefx train` makes one; for a "
            "network of your own, build it narrower and train it by 'dense'"
        )
    if not callable(make_optimizer):
        raise ArgumentError(
            f"make_optimizer is {type(make_optimizer).__name__}, not a function of parameters; pass "
            "lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)"
        )
