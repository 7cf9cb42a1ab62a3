"""A method as data: one row of independent axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

from sparsefx._common.distributions import Distribution
from sparsefx._common.registry import described, resolve
from sparsefx.cycle import (
    DECAY,
    DENSITIES,
    GROW,
    PRUNE,
    REDISTRIBUTE,
    Decay,
    Densities,
    ForAllLayers,
    GradualPruning,
    Grow,
    OfSurvivors,
    Prune,
    PruneAndRegrow,
    Redistribute,
    Timing,
    Update,
)
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.methods.checks import check_together, check_values
from sparsefx.methods.rounds import Rounds
from sparsefx.optim.rules import GradientTerm, Rules
from sparsefx.regularisers import REGULARISERS

_PARTS = {
    "timing": frozenset(field.name for field in dataclasses.fields(Timing)),
    "rounds": frozenset(field.name for field in dataclasses.fields(Rounds)),
}


def _no_options(method: Method) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class _Options:
    """A regulariser's arguments, some of them changed."""

    before: Callable[[Method], Mapping[str, Any]]
    changed: tuple[tuple[str, Any], ...]

    def __call__(self, method: Method) -> Mapping[str, Any]:
        return {**self.before(method), **dict(self.changed)}


@dataclass(frozen=True)
class Method:
    """How a network becomes, or stays, sparse. Every field is independent of the others.

    Attributes:
        name: what it is called.
        source: the paper and section it follows.
        density: fraction of the maskable weights that are active in the end, in (0, 1].
        start: the same at the beginning; None where it is ``density`` throughout.
        distribution: how the density is divided among layers, at first and where layers are pruned each for
            itself.
        constant_fan_in: the first masks give every neuron of a layer the same number of inputs.
        score: prune once before training to ``density``, by this score in :data:`sparsefx.scores.SCORES`.
        score_rounds: in how many steps.
        score_batches: how many batches of training data ``sparsefx train`` gives a score, also between
            rounds; or ``"balanced"`` for one with ten samples of each class. :class:`Training` uses all
            that it is given.
        prune: what an update removes, a name in :data:`sparsefx.cycle.PRUNE` or a callable; None if masks do
            not swap weights.
        redistribute: how many weights each layer regrows, likewise.
        grow: where they grow, likewise.
        rounding: whether a layer loses ``"ceil"`` or ``"floor"`` of its rate times its active weights.
        keeps_regrown: whether a weight removed and regrown at once keeps its value.
        densities: keep the largest weights at a density that falls from ``start`` to ``density`` so; None for
            no thinning. It comes before the swap.
        thin_scope: whether thinning compares the weights of a ``"layer"`` or of all: ``"global"``.
        thin_until: fraction of the time with updates after which the density stays.
        update: an update of another kind, made for the method's fields.
        prune_rate: fraction of a layer's active weights that an update swaps, before decay.
        decay: what becomes of it, a name in :data:`sparsefx.cycle.DECAY` or a callable.
        timing: when updates happen.
        new_weights: value of a weight that becomes active; see :class:`sparsefx.Rules`, as for what follows.
        inactive_buffers: the optimizer's buffers where a weight is inactive.
        replaces_step: an update takes the place of the optimizer's step.
        memory: which weights learn, if inactive ones keep their values.
        backward: how much denser the learning set is than the active one.
        least: how far a stored weight may go below 0 in its position's sign.
        gradient_terms: added to the gradient, made for the method's fields.
        signs: positions are bound to signs.
        explores: keep count of what was ever active.
        regulariser: train all weights under a penalty, a name in :data:`sparsefx.regularisers.REGULARISERS`.
        options: arguments of the regulariser, made for the method's fields.
        rounds: what happens between rounds of training; None for one round.
        masks: whether weights are masked at all; dense training masks none and has density 1.
        width: narrow all layers to the size of the sparse network instead of masking any.
    """

    name: str
    source: str
    density: float = 0.1
    start: float | None = None
    distribution: str | Distribution = "uniform"
    constant_fan_in: bool = False
    score: str | None = None
    score_rounds: int = 1
    score_batches: int | Literal["balanced"] = 1
    prune: str | Prune | ForAllLayers | None = None
    redistribute: str | Redistribute | OfSurvivors = "none"
    grow: str | Grow | ForAllLayers = "random"
    rounding: Literal["ceil", "floor"] = "ceil"
    keeps_regrown: bool = False
    densities: str | Densities | None = None
    thin_scope: Literal["layer", "global"] = "layer"
    thin_until: float = 1.0
    update: Callable[[Method], Update] | None = None
    prune_rate: float = 0.0
    decay: str | Decay = "constant"
    timing: Timing | None = None
    new_weights: Literal["zero", "initial", "sign"] = "zero"
    inactive_buffers: Literal["keep", "zero_on_grow", "mask"] = "keep"
    replaces_step: bool = False
    memory: Literal["all", "active", "backward"] | None = None
    backward: float = 0.0
    least: Callable[[Method], float] | None = None
    gradient_terms: Callable[[Method], tuple[GradientTerm, ...]] | None = None
    signs: bool = False
    explores: bool = False
    regulariser: str | None = None
    options: Callable[[Method], Mapping[str, Any]] = _no_options
    rounds: Rounds | None = None
    masks: bool = True
    width: bool = False

    def __str__(self) -> str:
        """A line for each field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["options"] = dict(self.options(self))
        width = max(map(len, values))
        return "\n".join(f"{name:{width}}  {described(value)}" for name, value in values.items())

    def __post_init__(self) -> None:
        check_values(self)
        check_together(self)

    @property
    def first_density(self) -> float:
        """The density at which training begins."""
        if self.score or self.regulariser or self.rounds or not self.masks:
            return 1.0
        return self.density if self.start is None else self.start

    def rules(self) -> Rules:
        """What happens at steps and updates.

        Raises:
            ArgumentError: a part is neither a known name nor a callable.
        """
        return Rules(
            updates=self._updates(),
            prune_rate=self.prune_rate,
            decay=resolve("decay", self.decay, DECAY),
            new_weights=self.new_weights,
            inactive_buffers=self.inactive_buffers,
            replaces_step=self.replaces_step,
            memory=self.memory,
            backward=self.backward,
            least=None if self.least is None else self.least(self),
            gradient_terms=() if self.gradient_terms is None else self.gradient_terms(self),
            signs=self.signs,
            explores=self.explores,
        )

    def _updates(self) -> tuple[Update, ...]:
        updates: list[Update] = []
        if self.densities is not None:
            shape = resolve("densities", self.densities, DENSITIES)
            start = self.density if self.start is None else self.start
            updates.append(
                GradualPruning(
                    start, self.density, shape, self.thin_scope, self.distribution, self.thin_until
                )
            )
        if self.update is not None:
            updates.append(self.update(self))
        if self.prune is not None:
            updates.append(
                PruneAndRegrow(
                    resolve("prune", self.prune, PRUNE),
                    resolve("redistribute", self.redistribute, REDISTRIBUTE),
                    resolve("grow", self.grow, GROW),
                    self.rounding,
                    self.keeps_regrown,
                )
            )
        return tuple(updates)

    def with_(self, **changes: Any) -> Method:
        """The same with other values for some fields, those of its timing, rounds and regulariser included.

        Raises:
            ArgumentError: a field is unknown, or a value cannot be used.

        Example:
            >>> import sparsefx
            >>> sparsefx.method("rigl", density=0.05).with_(grow="random", every=200).timing.every
            200
        """
        own = {f.name for f in dataclasses.fields(self)}
        for part, names in _PARTS.items():
            found = {name: changes.pop(name) for name in list(changes) if name in names and name not in own}
            if found:
                present = changes.get(part, getattr(self, part))
                if not isinstance(present, (Timing, Rounds)):
                    raise ArgumentError(f"{', '.join(found)}: method {self.name!r} has no {part} to change")
                changes[part] = dataclasses.replace(present, **found)
        regulariser = REGULARISERS.get(changes.get("regulariser", self.regulariser) or "")
        options = {} if regulariser is None else signature(regulariser).parameters
        chosen = {name: changes.pop(name) for name in list(changes) if name in options and name not in own}
        if chosen:
            changes["options"] = _Options(changes.get("options", self.options), tuple(chosen.items()))
        for name in changes:
            if name in ("seed", "generator"):
                raise ArgumentError(f"{name}= is no part of a method; give it to what trains by the method")
            if name not in own:
                raise unknown_name("method option", name, own.union(*_PARTS.values(), options))
        changed = dataclasses.replace(self, **changes)
        changed.rules()  # so that what cannot be used is told now
        return changed
