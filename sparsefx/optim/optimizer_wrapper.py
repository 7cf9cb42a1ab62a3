"""An optimizer around another: what schedulers, scalers, hooks and checkpoints see of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from sparsefx.errors import CheckpointError


class WrappedOptimizer(Optimizer):
    """Passes for the optimizer inside it; a subclass says what a step and a state dict have besides.

    Parameter groups, state and defaults are those of the wrapped optimizer, so learning-rate schedulers,
    ``GradScaler`` and gradient clipping need not know of it. Hooks registered on the wrapper run once a
    step. It pickles and copies.
    """

    _optimizer: Optimizer

    key: str
    """Under which a state dict keeps what is the wrapper's own."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Optimizer.__init__ would make parameter groups of its own; restoring, as unpickling does,
        # sets up the hooks and leaves the groups to the wrapped optimizer. So subclasses begin here.
        super().__setstate__(state)
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:
        # Hooks and the step that a learning-rate scheduler wraps belong to this very object.
        keep = self.__dict__.keys() - {"step", *self._not_pickled}
        return {key: self.__dict__[key] for key in keep if not key.startswith("_optimizer_")}

    _not_pickled: frozenset[str] = frozenset()

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

    # Cycles count, draw and branch by values, which a trace of them gets wrong. torch's own optimizers are
    # marked in this way; torch.compiler.disable would import the compiler with sparsefx.
    @_disable_dynamo
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step the wrapped optimizer, and do what the wrapper is for.

        A step that ``GradScaler`` skips never gets here, so it changes nothing. Where ``torch.compile``
        traces the caller, a step runs as it is; a compiled step of the wrapped optimizer stays compiled.

        Args:
            closure: re-evaluates the model and returns the loss; it always sees masked weights.

        Returns:
            What the wrapped optimizer returns.
        """
        return self._between_hooks(self._step_once, closure)

    # Optimizer wraps every step that is not marked so, for profiling and hooks. The wrapped optimizer's
    # step has that already; a second time costs a small network 2% of its step and runs global hooks twice.
    step.hooked = True  # type: ignore[attr-defined]

    def _between_hooks(
        self, once: Callable[[Callable[[], float] | None], float | None], closure: Callable[[], float] | None
    ) -> float | None:
        if self._optimizer_step_pre_hooks:
            closure = self._run_pre_hooks(closure)
        loss = once(closure)
        for after in self._optimizer_step_post_hooks.values():
            after(self, () if closure is None else (closure,), {})
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of the wrapped optimizer's parameters."""
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; masked weights in it take part from now on.

        A group that is added to the wrapped optimizer itself takes part from the next step on.

        Raises:
            ArgumentError: trainable masked weights are in none of the groups, this one included. Nothing has
                changed then.
        """
        self._check_group(param_group)
        self._optimizer.add_param_group(param_group)
        self._refresh()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, and what resuming needs besides under a key of its own.

        Masks are in the model's state dict. Readable by ``torch.load(weights_only=True)``.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = {**self._optimizer.state_dict(), self.key: self._own_state()}
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; load the model's own besides, before or after.

        Arguments such as ``cycles`` and ``prune_rate`` are those of this object, not of the saved one.

        Raises:
            CheckpointError: the state was not saved by such a wrapper, or for another model or
                other parameter groups. Nothing has changed then.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        apply = self._read_own_state(state_dict.pop(self.key, None))
        self._load_wrapped(state_dict)
        apply()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def train(self) -> None:
        """Switch a schedule-free optimizer to the weights that it trains; nothing for any other."""
        self._switch("train")

    def eval(self) -> None:
        """Switch a schedule-free optimizer to its averaged weights, masked; nothing for any other."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        change = getattr(self._optimizer, mode, None)
        if change is not None:
            change()
            self._refresh()

    @abstractmethod
    def _step_once(self, closure: Callable[[], float] | None) -> float | None:
        """One step, between the hooks."""

    @abstractmethod
    def _check_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a parameter group with which the wrapper could not go on."""

    @abstractmethod
    def _refresh(self) -> None:
        """Look the model up again: parameters or groups may have been replaced, or weights changed."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """The wrapper's part of a state dict."""

    @abstractmethod
    def _read_own_state(self, own: Any) -> Callable[[], None]:
        """Check the wrapper's part of a state dict; what it returns takes it over and cannot fail."""

    def _run_pre_hooks(self, closure: Callable[[], float] | None) -> Callable[[], float] | None:
        """Run the hooks that ``register_step_pre_hook`` added; each may replace the arguments of the step."""
        args: tuple[Any, ...] = () if closure is None else (closure,)
        for before in self._optimizer_step_pre_hooks.values():
            replaced = before(self, args, {})
            if replaced is not None:
                args = (*replaced[0], *replaced[1].values())
        return args[0] if args else None

    def _load_wrapped(self, state_dict: dict[str, Any]) -> None:
        try:
            self._optimizer.load_state_dict(state_dict)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"state_dict does not fit the wrapped {type(self._optimizer).__name__}: {error}. "
                "Build its parameter groups as they were when it was saved"
            ) from error
