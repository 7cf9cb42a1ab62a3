"""A recipe: how a network is trained, as data, and the learning rate as a function of the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparsefx._common.values import is_count, is_number
from sparsefx.cycle.rules.decay import DECAY
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.experiments.data import DATA, batch_count
from sparsefx.experiments.data.normalise import Normalisation


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training run but the network, the method, the density and the seed.

    Attributes:
        data: the data set's name.
        epochs: passes over the training data.
        batch_size: samples a step.
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: the learning rate after the warm-up.
        milestones: when the learning rate is multiplied by ``lr_factor``, in ascending order.
        milestone_unit: what ``milestones`` count: ``"steps"`` or ``"epochs"``.
        lr_factor: the factor at each milestone.
        warmup_epochs: epochs in which the learning rate rises linearly from one step's share to ``lr``.
        momentum: of SGD; Adam's first beta.
        nesterov: Nesterov's momentum (SGD only).
        weight_decay: L2 on the parameters.
        decay_norms: weight decay on the parameters of norms, too.
        label_smoothing: of the cross-entropy, in [0, 1).
        prune_rate: fraction of the weights that the first cycle removes.
        prune_decay: how the prune rate falls: a name in ``sparsefx.cycle.rules.decay.DECAY``.
        cycle_every: steps between cycles; None runs one after each epoch but the last.
        augment: crop and flip the training images.
        normalisation: of the inputs.
        validation: training samples held out.
        drop_last: leave out an epoch's last batch if it is smaller.
        source: where the recipe is from, and what of it is not certain.

    Raises:
        ArgumentError: a field has a value that cannot be used.
    """

    data: str
    epochs: int
    batch_size: int
    normalisation: Normalisation
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    milestones: tuple[float, ...] = ()
    milestone_unit: Literal["steps", "epochs"] = "epochs"
    lr_factor: float = 0.1
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = True
    label_smoothing: float = 0.0
    prune_rate: float = 0.5
    prune_decay: str = "cosine"
    cycle_every: int | None = None
    augment: bool = False
    validation: int = 0
    drop_last: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        for field, (is_valid, remedy) in _CHECKS.items():
            value = getattr(self, field)
            if not is_valid(value):
                raise ArgumentError(f"{field}={value!r} of a recipe must be {remedy}")

    def with_(self, **overrides: Any) -> Recipe:
        """The same recipe with other values.

        Raises:
            ArgumentError: there is no such field, or its value cannot be used.

        Example:
            >>> from sparsefx.experiments.run.recipes.papers import recipe_named
            >>> recipe_named("mnist").with_(epochs=10, lr=0.05).lr
            0.05
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in known:
                raise unknown_name("field of a recipe", name, known)
        return dataclasses.replace(self, **overrides)

    def steps_per_epoch(self, samples: int) -> int:
        """The steps of an epoch over ``samples`` training samples."""
        return batch_count(samples, self.batch_size, drop_last=self.drop_last)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one step: a pure function, so resuming and rewinding need no scheduler.

    Args:
        recipe: the recipe.
        step: number of steps done before this one.
        steps_per_epoch: steps of an epoch.

    Example:
        >>> from sparsefx.experiments.run.recipes.papers import recipe_named
        >>> mnist = recipe_named("mnist")
        >>> [round(learning_rate(mnist, step, 540), 6) for step in (0, 24_999, 25_000, 50_000)]
        [0.1, 0.1, 0.01, 0.001]
    """
    unit = steps_per_epoch if recipe.milestone_unit == "epochs" else 1
    passed = sum(step >= milestone * unit for milestone in recipe.milestones)
    warmup = recipe.warmup_epochs * steps_per_epoch
    ramp = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    return recipe.lr * recipe.lr_factor**passed * ramp


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe over another number of epochs, milestones and warm-up in proportion.

    ``cycle_every`` stays; cycles after each epoch become as many fewer as epochs.
    """
    return recipe.with_(
        epochs=epochs,
        milestones=tuple(milestone * epochs / recipe.epochs for milestone in recipe.milestones),
        warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs,
    )


def _is_ascending(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and all(is_number(value) and value > 0 for value in values)
        and list(values) == sorted(set(values))
    )


_POSITIVE = (lambda value: is_number(value) and value > 0, "a number above 0")
_NOT_NEGATIVE = (lambda value: is_number(value) and value >= 0, "a number of at least 0")
_BELOW_ONE = (lambda value: is_number(value) and 0 <= value < 1, "a number in [0, 1)")
_FLAG = (lambda value: isinstance(value, bool), "True or False")
_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "data": (lambda value: value in DATA, f"one of {', '.join(DATA)}"),
    "epochs": (is_count, "a whole number of at least 1"),
    "batch_size": (is_count, "a whole number of at least 1"),
    "normalisation": (lambda value: isinstance(value, Normalisation), "a Normalisation(mean, std)"),
    "optimizer": (lambda value: value in ("sgd", "adam"), "'sgd' or 'adam'"),
    "lr": _POSITIVE,
    "milestones": (_is_ascending, "a tuple of ascending numbers above 0"),
    "milestone_unit": (lambda value: value in ("steps", "epochs"), "'steps' or 'epochs'"),
    "lr_factor": _POSITIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "momentum": _BELOW_ONE,
    "nesterov": _FLAG,
    "weight_decay": _NOT_NEGATIVE,
    "decay_norms": _FLAG,
    "label_smoothing": _BELOW_ONE,
    "prune_rate": (lambda value: is_number(value) and 0 <= value <= 1, "a number in [0, 1]"),
    "prune_decay": (lambda value: value in DECAY, f"one of {', '.join(DECAY)}"),
    "cycle_every": (lambda value: value is None or is_count(value), "None or a number of steps"),
    "augment": _FLAG,
    "validation": (lambda value: is_count(value, 0), "a whole number of at least 0"),
    "drop_last": _FLAG,
}
