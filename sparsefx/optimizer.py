"""Sparse momentum training as a wrapper around any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsefx.carry_over import carry_over
from sparsefx.cycle import (
    DECAY,
    GROW,
    PRUNE,
    REDISTRIBUTE,
    CycleRecord,
    Decay,
    Grow,
    LayerState,
    Prune,
    Redistribute,
    run_cycle,
)
from sparsefx.errors import ArgumentError, CheckpointError, CycleError, unknown_name
from sparsefx.masks import MaskedWeight, masked_weights
from sparsefx.momentum import finite, keeps_momentum, read_momentum
from sparsefx.slots import Slot

_KEY = "sparse_momentum"
_SMOOTHING = 0.1  # of the own average: new = 0.9 * old + 0.1 * gradient
_WITHOUT_MOMENTUM = (
    PRUNE["magnitude"],
    *(REDISTRIBUTE[name] for name in ("magnitude", "nonzeros", "none")),
    *(GROW[name] for name in ("random", "gradient")),
)

_Part = TypeVar("_Part", bound=Callable[..., Any])


class SparseMomentum(Optimizer):
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
            rate for ``k / cycles``, which for the default is 0 at the last.
        prune_rate: fraction of a layer's active weights to remove in a cycle, before decay, in [0, 1].
        decay: ``"cosine"``, ``"linear"``, ``"constant"``, or a callable ``(prune_rate, progress)``.
        every: call ``cycle()`` every so many steps; None leaves it to you, once an epoch. ``cycles``
            counts these calls: ``cycles=total_steps // every``.
        prune: ``"magnitude"`` or a callable ``(layer, count, generator)`` that returns a bool tensor of
            the weight's shape, True at exactly ``count`` active positions. ``layer`` has ``weight``,
            ``mask``, ``momentum``, ``gradient`` and ``name``.
        redistribute: ``"momentum"``, ``"magnitude"``, ``"nonzeros"``, ``"none"`` or a callable ``(layers)``.
        grow: ``"momentum"``, ``"gradient"``, ``"random"``, ``"momentum_neuron"`` or a callable
            ``(layer, count, generator)`` that returns a bool tensor, True at exactly ``count`` inactive
            positions, for example ``sparsefx.cycle.GROW["random"]``.
        generator: CPU generator for what is random; by default one of its own, seeded with 0, so that
            every rank of a distributed run draws the same.

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

    history: list[CycleRecord]
    _optimizer: Optimizer
    _model: nn.Module
    _cycles: int
    _prune_rate: float
    _every: int | None
    _decay: Decay
    _prune: Prune
    _redistribute: Redistribute
    _grow: Grow
    _generator: torch.Generator
    _cycle: int
    _step: int
    _averages: dict[str, Tensor]
    _slots: list[Slot]

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
        generator: torch.Generator | None = None,
    ) -> None:
        _check_optimizer(optimizer)
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        _check_count("cycles", cycles)
        if every is not None:
            _check_count("every", every)
        if (
            isinstance(prune_rate, bool)
            or not isinstance(prune_rate, (int, float))
            or not 0 <= prune_rate <= 1
        ):
            raise ArgumentError(f"prune_rate={prune_rate!r} is not in [0, 1]")
        # Optimizer.__init__ would make parameter groups of its own; restoring, as unpickling does,
        # sets up the hooks and leaves the groups to the wrapped optimizer.
        fields = {
            "_optimizer": optimizer,
            "_model": model,
            "_cycles": cycles,
            "_prune_rate": float(prune_rate),
            "_every": every,
            "_decay": _resolve("decay", decay, DECAY),
            "_prune": _resolve("prune", prune, PRUNE),
            "_redistribute": _resolve("redistribute", redistribute, REDISTRIBUTE),
            "_grow": _resolve("grow", grow, GROW),
            "_generator": _cpu_generator(generator),
            "_cycle": 0,
            "_step": 0,
            "_averages": {},
            "history": [],
        }
        self.__setstate__(fields)
        self._zero_inactive()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's parameter groups."""
        return self._optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state."""
        return self._optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self._optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's defaults."""
        return self._optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._optimizer.defaults = defaults

    def __getstate__(self) -> dict[str, Any]:
        # Hooks and the step that a learning-rate scheduler wraps belong to this very object.
        keep = self.__dict__.keys() - {"step", "_slots"}
        return {key: self.__dict__[key] for key in keep if not key.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._refresh()

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{role}={_name(getattr(self, f'_{role}'))}"
            for role in ("decay", "prune", "redistribute", "grow")
        )
        return (
            f"{type(self).__name__}(cycle {self._cycle} of {self._cycles}, step {self._step}, "
            f"prune_rate={self._prune_rate}, every={self._every}, {parts})\n{self._optimizer!r}"
        )

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step the wrapped optimizer and zero the weights outside their masks.

        A step that ``GradScaler`` skips never gets here, so it changes nothing.

        Args:
            closure: re-evaluates the model and returns the loss; it always sees masked weights.

        Returns:
            What the wrapped optimizer returns.
        """
        if self._optimizer_step_pre_hooks:
            closure = self._run_pre_hooks(closure)
        if closure is None:
            loss = self._optimizer.step()
        else:
            loss = self._optimizer.step(self._on_masked_weights(closure))
        self._update_averages()
        self._zero_inactive()
        self._step += 1
        if self._every is not None and self._step % self._every == 0:
            self.cycle()
        for after in self._optimizer_step_post_hooks.values():
            after(self, () if closure is None else (closure,), {})
        return loss

    # Optimizer wraps every step that is not marked so, for profiling and hooks. The wrapped optimizer's
    # step has that already; a second time costs a small network 2% of its step and runs global hooks twice.
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of the wrapped optimizer's parameters."""
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; masked weights in it take part from now on."""
        self._optimizer.add_param_group(param_group)
        self._refresh()

    @torch.no_grad()
    def cycle(self) -> CycleRecord:
        """Prune, redistribute and grow, once. Call it after ``step()`` and before ``zero_grad()``.

        Masks change in place and new weights start at 0. Calls after the last of ``cycles`` run at
        the decay's final rate. If it raises, no weight and no mask has changed.

        Returns:
            What was done, also appended to :attr:`history`.

        Raises:
            CycleError: momentum or gradient is missing, or a custom part broke its contract.
        """
        self._refresh()
        rate = self._rate(self._cycle + 1)
        slots = [slot for slot in self._slots if slot.masked.weight.requires_grad]
        outcomes = run_cycle(
            self._layer_states([slot.masked for slot in slots], reads=rate > 0),
            rate=rate,
            prune=self._prune,
            redistribute=self._redistribute,
            grow=self._grow,
            generator=self._generator,
        )
        for slot, outcome in zip(slots, outcomes, strict=True):
            slot.masked.weight.masked_fill_(outcome.grown, 0)
            slot.masked.set_mask(outcome.mask)
        self._refresh()
        self._cycle += 1
        layers = tuple(outcome.record for outcome in outcomes)
        self.history.append(CycleRecord(self._cycle, self._step, rate, layers))
        return self.history[-1]

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

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, and what resuming needs besides under ``sparse_momentum``.

        Masks are in the model's state dict. Readable by ``torch.load(weights_only=True)``.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        own = {
            "cycle": self._cycle,
            "step": self._step,
            "generator": self._generator.get_state(),
            "averages": dict(self._averages),
            "layers": self._shapes(),
            "history": [record.to_plain() for record in self.history],
        }
        state_dict = {**self._optimizer.state_dict(), _KEY: own}
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; load the model's own besides, before or after.

        Arguments such as ``cycles`` and ``prune_rate`` are those of this object, not of the saved one.

        Raises:
            CheckpointError: the state was not saved by a ``SparseMomentum``, or for another model or
                other parameter groups. Nothing has changed then.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        own = state_dict.pop(_KEY, None)
        self._check_checkpoint(own)
        try:  # all that can fail comes before anything changes
            torch.Generator().set_state(own["generator"].cpu())
            history = [CycleRecord.from_plain(plain) for plain in own["history"]]
            cycle, step = int(own["cycle"]), int(own["step"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"state_dict[{_KEY!r}] is damaged: {error!r}; save it again") from error
        self._load_wrapped(state_dict)
        self._cycle, self._step, self.history = cycle, step, history
        self._generator.set_state(own["generator"].cpu())
        self._refresh()
        weights = {slot.masked.name: slot.masked.weight for slot in self._slots}
        self._averages = {
            name: average.to(weights[name].device, copy=True) for name, average in own["averages"].items()
        }
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _refresh(self) -> None:
        """Walk the model for its masked weights. Between walks only what a slot looks up is followed."""
        owned = {id(weight) for group in self.param_groups for weight in group["params"]}
        found = masked_weights(self._model)
        if not found:
            raise ArgumentError("model has no masked weights; pass it through sparsefx.sparsify first")
        missing = [m.name for m in found if m.weight.requires_grad and id(m.weight) not in owned]
        if missing:
            raise ArgumentError(
                f"optimizer does not hold the masked weights of {', '.join(missing)}; build it from the "
                "sparsified model's parameters(), or freeze these layers with requires_grad_(False)"
            )
        self._slots = [Slot.of(masked) for masked in found if id(masked.weight) in owned]

    @torch.no_grad()
    def _zero_inactive(self) -> None:
        for slot in self._slots:
            slot.zero_inactive()

    def _run_pre_hooks(self, closure: Callable[[], float] | None) -> Callable[[], float] | None:
        """Run the hooks that ``register_step_pre_hook`` added; each may replace the arguments of the step."""
        args: tuple[Any, ...] = () if closure is None else (closure,)
        for before in self._optimizer_step_pre_hooks.values():
            replaced = before(self, args, {})
            if replaced is not None:
                args = (*replaced[0], *replaced[1].values())
        return args[0] if args else None

    def _on_masked_weights(self, closure: Callable[[], float]) -> Callable[[], float]:
        """A closure for optimizers that evaluate the model at points of their own, such as LBFGS."""

        def evaluate() -> float:
            self._zero_inactive()
            return closure()

        return evaluate

    @torch.no_grad()
    def _update_averages(self) -> None:
        """Keep the average gradient of every weight whose optimizer keeps no momentum."""
        if not self._uses_momentum():
            return
        for slot in self._slots:
            weight = slot.weight
            if weight.grad is None or keeps_momentum(self._optimizer, weight):
                continue
            # One inf would stay in an average for good. Not finite(): it would wait for the device.
            gradient = weight.grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            average = self._averages.setdefault(slot.masked.name, torch.zeros_like(gradient))
            average.lerp_(gradient, _SMOOTHING)

    def _uses_momentum(self) -> bool:
        """Whether a part of the cycle may read the momentum; a custom one is taken to."""
        return any(part not in _WITHOUT_MOMENTUM for part in (self._prune, self._redistribute, self._grow))

    def _rate(self, cycle: int) -> float:
        rate = self._decay(self._prune_rate, min(1.0, cycle / self._cycles))
        if not 0 <= rate <= 1:
            raise CycleError(
                f"decay {_name(self._decay)!r} returned {rate!r} for cycle {cycle} of {self._cycles}; "
                "it must return a rate in [0, 1]"
            )
        return rate

    def _layer_states(self, layers: list[MaskedWeight], *, reads: bool) -> list[LayerState]:
        """The layers for a cycle; momentum and gradients only if it ``reads`` them."""
        absent: list[Tensor | None] = [None] * len(layers)
        momenta = [self._momentum(m) for m in layers] if reads and self._uses_momentum() else absent
        gradients = [_gradient(m.weight) for m in layers] if reads else absent
        weights = [m.weight.detach() for m in layers]
        states = zip(
            layers, weights, _zeros_if_some(momenta, weights), _zeros_if_some(gradients, weights), strict=True
        )
        return [LayerState(m.name, weight, m.mask, momentum, grad) for m, weight, momentum, grad in states]

    def _momentum(self, masked: MaskedWeight) -> Tensor | None:
        momentum = read_momentum(self._optimizer, masked.weight)
        return self._averages.get(masked.name) if momentum is None else momentum

    def _shapes(self) -> dict[str, list[int]]:
        return {slot.masked.name: list(slot.masked.weight.shape) for slot in self._slots}

    def _check_checkpoint(self, own: Any) -> None:
        if not isinstance(own, Mapping):
            raise CheckpointError(
                f"state_dict has no {_KEY!r} entry; it must come from SparseMomentum.state_dict(). To start "
                "from the plain optimizer's state, load it into that optimizer before wrapping it"
            )
        missing = {"cycle", "step", "generator", "averages", "layers", "history"} - own.keys()
        if missing:
            raise CheckpointError(f"state_dict[{_KEY!r}] lacks {', '.join(sorted(missing))}; save it again")
        saved, present = dict(own["layers"]), self._shapes()
        strange = sorted(set(own["averages"]) - set(saved))
        if strange:
            raise CheckpointError(
                f"state_dict[{_KEY!r}] has averages of unknown layers: {', '.join(strange)}"
            )
        differing = sorted(n for n in saved.keys() | present.keys() if saved.get(n) != present.get(n))
        if differing:
            raise CheckpointError(
                f"state_dict was saved for other masked layers: {', '.join(differing)} differ in name or "
                "shape. Build the model and the optimizer as they were when it was saved"
            )

    def _load_wrapped(self, state_dict: dict[str, Any]) -> None:
        try:
            self._optimizer.load_state_dict(state_dict)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"state_dict does not fit the wrapped {type(self._optimizer).__name__}: {error}. "
                "Build its parameter groups as they were when it was saved"
            ) from error


def _zeros_if_some(values: list[Tensor | None], like: list[Tensor]) -> list[Tensor | None]:
    """Zeros for layers without a value when others have one: they never got a gradient."""
    if all(value is None for value in values):
        return values
    return [
        torch.zeros_like(weight) if value is None else value
        for value, weight in zip(values, like, strict=True)
    ]


def _gradient(weight: Tensor) -> Tensor | None:
    return None if weight.grad is None else finite(weight.grad)


def _check_optimizer(optimizer: object) -> None:
    if isinstance(optimizer, SparseMomentum):
        raise ArgumentError("optimizer is a SparseMomentum already; wrap the optimizer inside it instead")
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}; "
            "SparseMomentum(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, cycles=...)"
        )


def _check_count(argument: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{argument}={value!r} is not a whole number of at least 1")


def _cpu_generator(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        return torch.Generator().manual_seed(0)
    if generator.device.type != "cpu":
        raise ArgumentError(f"generator is on {generator.device}; pass a CPU torch.Generator")
    return generator


def _resolve(role: str, part: str | _Part, table: Mapping[str, _Part]) -> _Part:
    """A registered name's function, or the callable itself."""
    if isinstance(part, str):
        if part not in table:
            raise unknown_name(role, part, table)
        return table[part]
    if not callable(part):
        raise ArgumentError(f"{role}={part!r} is neither a name ({', '.join(table)}) nor a callable")
    return part


def _name(function: object) -> str:
    return getattr(function, "__name__", repr(function))
