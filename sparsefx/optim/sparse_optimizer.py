"""Train a sparse model by any rules: an optimizer that keeps it sparse and updates its masks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from sparsefx._common.registry import described
from sparsefx._common.seeds import cpu_generator
from sparsefx._common.subnormal import flush_subnormal
from sparsefx.cycle import CycleRecord, LayerState, Schedule, UpdateContext, in_turn
from sparsefx.cycle.updates.update import names_of
from sparsefx.errors import ArgumentError, CheckpointError, CycleError
from sparsefx.masking.masks import check_values
from sparsefx.masking.packing import Packing, adopt
from sparsefx.masking.replicas import check_equal, check_group, replicating_group, training_groups
from sparsefx.masking.sharding import check_not_flattened, local
from sparsefx.optim.auxiliary_tensors import AuxiliaryTensors
from sparsefx.optim.checkpoint_schema import check_own_state, saved_notes
from sparsefx.optim.gradient_window import GradientWindow, Window
from sparsefx.optim.gradients.active_gradients import ActiveGradients, forget_curvature, mixes_positions
from sparsefx.optim.gradients.averages import GradientAverages
from sparsefx.optim.gradients.momentum import kept_weights
from sparsefx.optim.layer_states import layer_states
from sparsefx.optim.optimizer_state import flush_states, zero_state
from sparsefx.optim.optimizer_wrapper import WrappedOptimizer
from sparsefx.optim.rules import Rules
from sparsefx.optim.transfer_state import carry_over
from sparsefx.optim.weights.trained_weights import TrainedWeights
from sparsefx.optim.weights.weight_checks import ChangesBetweenSteps, warn_if_diverged
from sparsefx.optim.weights.weight_handles import WeightHandle

_LONGEST_HISTORY = 2_000
_FLUSHED_EVERY = 128  # steps; momentum takes 150 from the least normal number to the least of all


class SparseOptimizer(WrappedOptimizer):
    """Wrap an optimizer so that training keeps a sparse model sparse, by the rules of some method.

    ``step()`` steps the wrapped optimizer and sets weights outside their mask back to 0; when the
    schedule says so it also updates the masks, which ``cycle()`` does at any time.

    Args:
        optimizer: holds every trainable masked weight of ``model``.
        model: a sparsified model, also one wrapped by ``torch.compile`` or DistributedDataParallel.
        rules: what happens at steps and updates.
        schedule: when updates happen, such as a :class:`Clock`.
        seed: seed of what is random. By default it is drawn from torch's default generator, so that
            ``torch.manual_seed`` decides; where torch.distributed is initialised, by the first rank for all
            that train the same masks, so make the optimizer on all of them.
        generator: CPU generator for what is random, instead of a seed; seeded alike on every rank.
        group: the process group whose ranks train the same masks; by default that of the
            DistributedDataParallel around ``model``, if there is one. Every cycle checks that they do.
        after_step: called at the end of every step, for what follows the schedule besides.
        window: of an accelerated model (:func:`sparsefx.accelerate`), how many steps before each cycle
            compute the gradients of inactive weights. ``"auto"``: as many as the momentum takes to forget
            to 1%, 1 where momentum of inactive weights does not matter, all for a method that reads them
            at each step.

    Attributes:
        history: a :class:`CycleRecord` for every update so far, the last 2,000 at most.

    Raises:
        ArgumentError: an argument cannot be used, the model has no masked weights, or a trainable one
            is missing from the optimizer; or torch's first FSDP has flattened its weights.
        CycleError: ranks that train the same model differ in their masks or generators.
    """

    history: list[CycleRecord]
    _model: nn.Module
    _rules: Rules
    _schedule: Schedule
    _generator: torch.Generator
    _cycle: int
    _step: int
    _averages: GradientAverages
    _notes: dict[str, dict[str, Any]]
    _auxiliary: AuxiliaryTensors
    _after_step: Callable[[], None] | None
    _retired: str
    _reads_momentum: bool
    _mixes_positions: bool
    _changes: ChangesBetweenSteps
    _window: GradientWindow
    _trained: TrainedWeights = TrainedWeights()

    key = "sparse_momentum"
    _not_pickled = frozenset({"_trained", "_group", "_packings"})
    _packings: Sequence[Packing] = ()
    _group: Any = None  # of a copy, too

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        rules: Rules,
        schedule: Schedule,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        after_step: Callable[[], None] | None = None,
        group: Any = None,
        window: Window = "auto",
    ) -> None:
        _check_optimizer(optimizer)
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        check_group(group)
        check_not_flattened(model)
        fields = {
            "_optimizer": optimizer,
            "_model": model,
            "_rules": rules,
            "_schedule": schedule,
            "_generator": cpu_generator(seed, generator, training_groups(model, group)),
            "_cycle": 0,
            "_step": 0,
            "_averages": GradientAverages(),
            "_notes": {},
            "_auxiliary": AuxiliaryTensors(rules),
            "_after_step": after_step,
            "_retired": "",
            "_reads_momentum": rules.reads_momentum(),
            "_mixes_positions": mixes_positions(optimizer),
            "_changes": ChangesBetweenSteps(),
            "_window": GradientWindow(window, rules, schedule, optimizer),
            "_group": group,
            "history": [],
        }
        self.__setstate__(fields)
        self._check_ranks()

    @property
    def wrapped(self) -> Optimizer:
        """The optimizer inside."""
        return self._optimizer

    @property
    def model(self) -> nn.Module:
        """The model that it trains."""
        return self._model

    @property
    def rules(self) -> Rules:
        """What happens at steps and updates."""
        return self._rules

    @property
    def steps_done(self) -> int:
        """Steps so far."""
        return self._step

    @property
    def explored(self) -> float | None:
        """Fraction of all maskable positions that were ever active, if the rules keep count of it.

        "In-time over-parametrisation" of Liu et al. 2021, section 3. Collective for a
        sharded model: ask on every rank.
        """
        return self._auxiliary.explored()

    def __repr__(self) -> str:
        done = f"cycle {self._cycle}, step {self._step}"
        parts = ", ".join(map(described, (self._schedule, self._rules)))
        return f"{type(self).__name__}({done}, {parts})\n{self._optimizer!r}"

    @_disable_dynamo  # as step() is
    @torch.no_grad()
    def cycle(self) -> CycleRecord:
        """Update the masks, once. Call it after ``step()`` and before ``zero_grad()``.

        Masks change in place. Calls after the last update run at the decay's final rate. If it raises, no
        weight and no mask has changed.

        Returns:
            What was done, also appended to :attr:`history`.

        Raises:
            CycleError: momentum or gradient is missing, a custom part broke its contract, or ranks that
                train the same model have come to differ in their masks or generators.
            ArgumentError: masks were made on the meta device and were given no values since.

        Warns:
            UserWarning: weights are not finite; or the model is accelerated, and the cycle came before the
                steps that compute gradients of inactive weights for it.
        """
        if isinstance(self._optimizer, SparseOptimizer):  # self is Lightning's proxy and has no state
            return self._optimizer.cycle()
        self._warn_if_early()
        self._refresh()
        check_values([handle.masked for handle in self._handles])
        warn_if_diverged(self._handles)
        context = self._context()
        handles = [handle for handle in self._handles if handle.masked.weight.requires_grad]
        self._check_ranks()
        outcomes = in_turn(self._rules.updates, self._layer_states(handles), context)
        for handle, outcome in zip(handles, outcomes, strict=True):
            self._auxiliary.renew(handle, outcome, self._generator)
            handle.masked.set_mask(outcome.mask)
            if self._rules.inactive_buffers == "zero_on_grow":
                zero_state(self._optimizer, handle.weight, outcome.grown)
        self._refresh()
        self._changes.masks_have_changed()
        if any(outcome.record.grown for outcome in outcomes):
            forget_curvature(self._optimizer)
        self._notes = {name: notes for name, notes in context.notes.items() if notes}
        self._cycle += 1
        layers = tuple(outcome.record for outcome in outcomes)
        record = CycleRecord(self._cycle, self._step, context.rate, layers)
        self.history.append(record)
        del self.history[:-_LONGEST_HISTORY]
        self._window.forget()
        self._hold_dense()
        self._after_cycle(record)
        return record

    def _after_cycle(self, record: CycleRecord) -> None:
        """What a subclass says of a cycle that is done."""

    def compact(self, model: nn.Module) -> Optimizer:
        """The optimizer that trains on a model which :func:`export` made with ``fold_batchnorm=False``.

        Call it right after the export. Momentum and whatever else the wrapped optimizer keeps of a
        weight are cut with the weight; a bias that the export made has none yet. Hooks and schedulers
        stay with this one.

        Args:
            model: the exported model, on whatever device it will be trained.

        Returns:
            An optimizer of the wrapped one's class with the same parameter groups, of which it holds what
            is left. The exported model has no masks, so it needs no wrapper.

        Raises:
            ArgumentError: ``model`` was not exported from this optimizer's model with
                ``fold_batchnorm=False``, or the wrapped optimizer's class cannot be built from its defaults.

        Example:
            >>> import torch, sparsefx
            >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 8)), density=0.25)
            >>> adam = torch.optim.Adam(model.parameters(), lr=0.1)
            >>> optimizer = sparsefx.SparseMomentum(adam, model, cycles=10)
            >>> small = sparsefx.export(model, (torch.ones(1, 8),), fold_batchnorm=False)
            >>> type(optimizer.compact(small)).__name__
            'Adam'
        """
        return carry_over(self._optimizer, self._model, model)

    def retire(self, why: str) -> None:
        """Refuse steps from now on, because another optimizer has taken over.

        Args:
            why: what the error says.
        """
        self._retired = why

    @property
    def first_step(self) -> Callable[..., None]:
        """The first of SAM's two steps (Foret et al. 2021), on the gradients of active weights.

        ``first_step(zero_grad=False)``; an optimizer without one has none here either.
        """
        return self._part_of_step("first_step", self._first_step)

    @property
    def second_step(self) -> Callable[..., None]:
        """The second step, ``second_step(zero_grad=False)``: with what :meth:`step` does besides."""
        return self._part_of_step("second_step", self._second_step)

    def _part_of_step(self, name: str, own: Callable[..., None]) -> Callable[..., None]:
        step: Callable[..., None] = getattr(self._optimizer, name)
        is_proxy = isinstance(self._optimizer, SparseOptimizer)  # Lightning's, which has no state
        return step if is_proxy else partial(own, step)

    def _first_step(self, step: Callable[[], None], zero_grad: bool = False) -> None:
        self._begin_step()
        self._on_active_gradients(step, None)
        self._zero_inactive()
        if zero_grad:
            self.zero_grad()

    def _second_step(self, step: Callable[[], None], zero_grad: bool = False) -> None:
        self._between_hooks(lambda _: self._step_once(None, step), None)
        if zero_grad:
            self.zero_grad()

    def _step_once(
        self, closure: Callable[[], float] | None, step: Callable[..., Any] | None = None
    ) -> float | None:
        """One step, or the rest of one, which the wrapped optimizer calls ``step``."""
        self._begin_step()
        due = self._schedule.is_due(self._step + 1, self._generator)
        if due and self._rules.replaces_step:
            loss = None if closure is None else self._on_masked_weights(closure)()
        else:
            loss = self._learn(closure, step or self._optimizer.step)
        if self._reads_momentum:
            self._averages.update(self._handles, self._optimizer)
        self._zero_inactive()
        if self._rules.inactive_buffers == "mask":
            self._mask_buffers()
        self._changes.end_step(self._handles)
        self._step += 1
        if self._step % _FLUSHED_EVERY == 0:
            self._flush()
        if due:
            self.cycle()
        self._hold_dense()
        if self._after_step is not None:
            self._after_step()
        return loss

    def _flush(self) -> None:
        """Set numbers to 0 that are too small to change anything, and slow a CPU down."""
        flush_states(self._optimizer)
        for average in self._averages.tensors.values():
            flush_subnormal(local(average))
        if self._rules.memory is None:  # what is stored may be as small as it likes
            for handle in self._handles:
                flush_subnormal(handle.values)

    def _begin_step(self) -> None:
        if self._retired:
            raise ArgumentError(f"step() of an optimizer that is done with: {self._retired}")
        if any(handle.was_moved for handle in self._handles):
            self._refresh()  # an evaluation left weights gathered, or they were sharded after all
        self._follow_groups()
        if self._step == 0:
            check_values([handle.masked for handle in self._handles])
        self._changes.begin_step(self._handles)

    def _learn(self, closure: Callable[[], float] | None, step: Callable[..., Any]) -> float | None:
        """Let the wrapped optimizer step: on the stored weights, if there are such, and their gradients."""
        if self._rules.memory is not None and (closure is not None or self._mixes_positions):
            raise ArgumentError(
                "closure: a method that stores inactive weights cannot take one, nor an optimizer that "
                "evaluates the model itself; call step() of another optimizer"
            )
        if closure is not None:
            closure = self._on_masked_weights(closure)
        else:
            self._add_gradient_terms()
        if self._mixes_positions:
            return self._on_active_gradients(step, closure)
        if self._rules.memory is not None:
            return self._on_stored_weights(step)
        loss: float | None = step() if closure is None else step(closure)
        return loss

    def _on_active_gradients(
        self, step: Callable[..., Any], closure: Callable[[], float] | None
    ) -> float | None:
        gradients = ActiveGradients(self._handles)
        gradients.hide()
        loss: float | None = step() if closure is None else step(gradients.after(closure))
        gradients.show()
        return loss

    def _on_stored_weights(self, step: Callable[[], Any]) -> float | None:
        self._auxiliary.recall(self._handles)
        try:
            loss: float | None = step()
        except BaseException:
            self._zero_inactive()  # the model must not be left with the stored weights
            raise
        self._auxiliary.keep(self._handles)
        return loss

    def _refresh(self) -> None:
        """Walk the model for its masked weights, and start with those that are new."""
        self._trained = self._trained.again(self._model, self.param_groups)
        self._zero_inactive()
        self._auxiliary.begin(self._handles, self._generator)
        self._packings = [packing for handle in self._handles if (packing := handle.packing) is not None]
        for packing in self._packings:
            adopt(packing, self._optimizer)
        self._hold_dense()

    def _hold_dense(self) -> None:
        """Keep the weights of an accelerated model dense where the next step wants all their gradients."""
        if self._packings:
            wanted = self._window.wants(self._step + 1, [record.step for record in self.history[-2:]])
            for packing in self._packings:
                packing.hold("window", wanted)

    def _warn_if_early(self) -> None:
        if self._reads_momentum and any(packing.is_packed for packing in self._packings):
            warnings.warn(
                "this cycle comes earlier than foreseen: gradients of inactive weights were not computed for "
                f"it, and growth reads none. Give every=, or window= more than {self._window.steps} steps",
                stacklevel=4,
            )

    @property
    def _handles(self) -> Sequence[WeightHandle]:
        return self._trained.handles

    def _follow_groups(self) -> None:
        """Walk the model again where others have changed the wrapped optimizer's groups."""
        if not self._trained.are_of(self.param_groups):
            self._refresh()

    def _check_group(self, param_group: dict[str, Any]) -> None:
        if not isinstance(param_group, dict) or isinstance(param_group.get("params"), (set, type(None))):
            return  # torch refuses it
        params = param_group["params"]
        # What can be read only once is read here, as torch does.
        held = param_group["params"] = [params] if isinstance(params, Tensor) else list(params)
        added = (entry[1] if isinstance(entry, tuple) else entry for entry in held)
        self._trained.find(self._model, self.param_groups, added)

    def _check_ranks(self) -> None:
        group = replicating_group(self._model) if self._group is None else self._group
        check_equal([handle.masked for handle in self._handles], group, self._generator)

    @torch.no_grad()
    def _zero_inactive(self) -> None:
        if self._rules.memory is not None:  # then inactive weights are stored, and the optimizer learns them
            for handle in self._handles:
                handle.zero_inactive()
            return
        for handle in self._handles:
            handle.zero_inactive(*kept_weights(self._optimizer, handle.weight))

    def _on_masked_weights(self, closure: Callable[[], float]) -> Callable[[], float]:
        """A closure for optimizers that evaluate the model at points of their own, such as LBFGS."""

        def evaluate() -> float:
            self._zero_inactive()
            loss = closure()
            self._add_gradient_terms()
            return loss

        return evaluate

    @torch.no_grad()
    def _add_gradient_terms(self) -> None:
        if not self._rules.gradient_terms:
            return
        context, layers = self._context(), self._layer_states(self._handles)
        for handle, layer in zip(self._handles, layers, strict=True):
            gradient = handle.weight.grad
            if gradient is not None:
                for term in self._rules.gradient_terms:
                    local(gradient).add_(term(layer, context).to(gradient.dtype))

    def _mask_buffers(self) -> None:
        for handle in self._handles:
            learning = None if handle.is_packed else self._auxiliary.learning(handle)
            if learning is not None:
                zero_state(self._optimizer, handle.weight, ~learning)

    def _context(self) -> UpdateContext:
        """Now, as the next update sees it; a copy of the notes, so that one that fails changes none."""
        cycle = self._cycle + 1
        progress = self._schedule.progress(self._step, cycle)
        rate = self._rules.decay(self._rules.prune_rate, progress)
        if not 0 <= rate <= 1:
            name = getattr(self._rules.decay, "__name__", repr(self._rules.decay))
            raise CycleError(
                f"decay {name!r} returned {rate!r} for cycle {cycle}, progress {progress:.4g}; "
                "it must return a rate in [0, 1]"
            )
        notes = {name: dict(notes) for name, notes in self._notes.items()}
        return UpdateContext(rate, progress, self._generator, notes)

    def _layer_states(self, handles: Sequence[WeightHandle]) -> list[LayerState]:
        """The layers for an update; momenta only if it may read them."""
        averages = self._averages if self._reads_momentum else None
        return layer_states(handles, self._auxiliary, averages, self._optimizer)

    def _shapes(self) -> dict[str, list[int]]:
        return {handle.masked.name: list(handle.masked.weight.shape) for handle in self._handles}

    def _own_state(self) -> dict[str, Any]:
        self._follow_groups()
        return {
            "cycle": self._cycle,
            "step": self._step,
            "generator": self._generator.get_state(),
            "averages": dict(self._averages.tensors),
            "notes": dict(self._notes),
            "updates": names_of(self._rules.updates),
            "companions": self._auxiliary.state(),
            "layers": self._shapes(),
            "history": [record.to_plain() for record in self.history],
        }

    def _read_own_state(self, own: Any) -> Callable[[], None]:
        self._follow_groups()
        check_own_state(own, self.key, type(self).__name__, self._shapes())
        try:  # all that can fail comes before anything changes
            torch.Generator().set_state(own["generator"].cpu())
            history = [CycleRecord.from_plain(plain) for plain in own["history"]]
            cycle, step, notes = int(own["cycle"]), int(own["step"]), saved_notes(own, self._rules.updates)
            self._auxiliary.check(own["companions"], self._shapes())
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"state_dict[{self.key!r}] is damaged: {error!r}; save it again") from error

        def take_over() -> None:
            self._cycle, self._step, self._notes, self.history = cycle, step, notes, history
            self._generator.set_state(own["generator"].cpu())
            self._window.forget()
            self._refresh()
            self._auxiliary.load(own["companions"], self._handles)
            self._averages.load(own["averages"], self._handles)

        return take_over


def _check_optimizer(optimizer: object) -> None:
    if isinstance(optimizer, SparseOptimizer):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__} already; wrap the optimizer inside it instead"
        )
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}; "
            "SparseMomentum(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, cycles=...)"
        )
