"""The parts of a method, each a few options that belong together and valid by itself.

The attributes of all parts have different names: they are a method's options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sparsefx._common.distributions import DISTRIBUTIONS, Distribution
from sparsefx._common.registry import resolve
from sparsefx._common.values import check_count
from sparsefx.cycle import (
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
from sparsefx.methods.checks import (
    check_choice,
    check_flags,
    check_fraction,
    check_function,
    check_positive_fraction,
)
from sparsefx.optim.rules import GradientTerm
from sparsefx.regularisers import REGULARISERS
from sparsefx.scores import SCORES


@dataclass(frozen=True)
class Sparsity:
    """How sparse a network becomes.

    Attributes:
        density: fraction of the maskable weights that are active in the end, in (0, 1].
        start: the same at the beginning; None where it is ``density`` throughout.
        distribution: how the density is divided among layers, at first and where layers are pruned each for
            itself.
    """

    density: float = 0.1
    start: float | None = None
    distribution: str | Distribution = "uniform"

    def __post_init__(self) -> None:
        check_positive_fraction("density", self.density, "; 0.05 keeps 5% of the weights")
        if self.start is not None:
            check_positive_fraction("start", self.start)
            if self.start < self.density:
                raise ArgumentError(
                    f"start={self.start!r} is below density={self.density!r}; methods only remove weights"
                )
        if isinstance(self.distribution, str) and self.distribution not in DISTRIBUTIONS:
            raise unknown_name("distribution", self.distribution, DISTRIBUTIONS)
        if not (isinstance(self.distribution, str) or callable(self.distribution)):
            raise ArgumentError(f"distribution={self.distribution!r} is neither a name nor a callable")

    @property
    def first(self) -> float:
        """The density before the first update."""
        return self.density if self.start is None else self.start


@dataclass(frozen=True)
class FirstMasks:
    """The masks that training begins with.

    Attributes:
        masks: whether weights are masked at all; dense training masks none and has density 1.
        width: narrow all layers to the size of the sparse network instead of masking any.
        constant_fan_in: the first masks give every neuron of a layer the same number of inputs.
        score: prune once before training to ``density``, by this score in :data:`sparsefx.scores.SCORES`.
        score_rounds: in how many steps.
    """

    masks: bool = True
    width: bool = False
    constant_fan_in: bool = False
    score: str | None = None
    score_rounds: int = 1

    def __post_init__(self) -> None:
        check_flags(self, "masks", "width", "constant_fan_in")
        check_choice("score", self.score, None, *SCORES)
        check_count("score_rounds", self.score_rounds)
        if self.width and self.masks:
            raise ArgumentError("width=True narrows layers instead of masking them; set masks=False")
        if not self.masks and (self.score is not None or self.constant_fan_in):
            raise ArgumentError("masks=False leaves nothing to score, and no neuron a constant fan-in")
        if self.score is not None and self.constant_fan_in:
            raise ArgumentError(f"constant_fan_in=True and score={self.score!r} both choose the first masks")


@dataclass(frozen=True)
class FallingDensity:
    """Keep the largest weights at a density that falls.

    Attributes:
        densities: how it falls from ``start`` to ``density``, a name in :data:`sparsefx.cycle.DENSITIES` or a
            callable; None for no gradual pruning. It comes before weights are pruned and regrown.
        thin_scope: whether it compares the weights of a ``"layer"`` or of all: ``"global"``.
        thin_until: fraction of the time with updates after which the density stays.
    """

    densities: str | Densities
    thin_scope: Literal["layer", "global"] = "layer"
    thin_until: float = 1.0

    def __post_init__(self) -> None:
        resolve("densities", self.densities, DENSITIES)
        check_choice("thin_scope", self.thin_scope, "layer", "global")
        check_positive_fraction("thin_until", self.thin_until)

    def update(self, sparsity: Sparsity) -> GradualPruning:
        """The update that does it."""
        densities = resolve("densities", self.densities, DENSITIES)
        return GradualPruning(
            sparsity.first,
            sparsity.density,
            densities,
            self.thin_scope,
            sparsity.distribution,
            self.thin_until,
        )


@dataclass(frozen=True)
class Regrowth:
    """Remove weights and grow as many.

    Attributes:
        prune: what an update removes, a name in :data:`sparsefx.cycle.PRUNE` or a callable; None if weights
            are not pruned and regrown.
        redistribute: how many weights each layer regrows, likewise.
        grow: where they grow, likewise.
        rounding: whether a layer loses ``"ceil"`` or ``"floor"`` of its rate times its active weights.
        keeps_regrown: whether a weight removed and regrown at once keeps its value.
    """

    prune: str | Prune | ForAllLayers
    redistribute: str | Redistribute | OfSurvivors = "none"
    grow: str | Grow | ForAllLayers = "random"
    rounding: Literal["ceil", "floor"] = "ceil"
    keeps_regrown: bool = False

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, "ceil", "floor")
        check_flags(self, "keeps_regrown")
        self.update()

    def update(self) -> PruneAndRegrow:
        """The update that does it."""
        return PruneAndRegrow(
            resolve("prune", self.prune, PRUNE),
            resolve("redistribute", self.redistribute, REDISTRIBUTE),
            resolve("grow", self.grow, GROW),
            self.rounding,
            self.keeps_regrown,
        )

    @property
    def needs_rate(self) -> bool:
        """Whether the prune rate decides how much is removed, as it does not of thresholds."""
        return not isinstance(resolve("prune", self.prune, PRUNE), ForAllLayers)


@dataclass(frozen=True)
class Updates:
    """How the masks change while training.

    Attributes:
        timing: when updates happen.
        falling: gradual pruning.
        update: an update of another kind, made for the method's :class:`Sparsity`.
        regrowth: pruning and regrowing.
        prune_rate: fraction of a layer's active weights that an update replaces, before decay.
        decay: what becomes of it, a name in :data:`sparsefx.cycle.DECAY` or a callable.
        replaces_step: an update takes the place of the optimizer's step.
    """

    timing: Timing
    falling: FallingDensity | None = None
    update: Callable[[Sparsity], Update] | None = None
    regrowth: Regrowth | None = None
    prune_rate: float = 0.0
    decay: str | Decay = "constant"
    replaces_step: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.timing, Timing):
            raise ArgumentError(
                f"timing={self.timing!r} is no sparsefx.Timing; every={self.timing!r} changes it"
            )
        check_function("update", self.update)
        check_fraction("prune_rate", self.prune_rate)
        check_flags(self, "replaces_step")
        self._check_rate()

    def _check_rate(self) -> None:
        if self.falling is None and self.update is None and self.regrowth is None:
            raise ArgumentError(
                "timing without prune, densities or update: there is nothing to be timed; timing=None "
                "leaves the masks as they are"
            )
        if self.prune_rate and self.update is None and self.regrowth is None:
            raise ArgumentError(
                f"prune_rate={self.prune_rate!r} has no effect without prune='magnitude' or another one"
            )
        if self.regrowth is not None and self.regrowth.needs_rate and not self.prune_rate:
            raise ArgumentError(
                f"prune={self.regrowth.prune!r} at prune_rate=0 removes nothing; set prune_rate=0.5"
            )

    @property
    def change_density(self) -> bool:
        """Whether there is an update that may."""
        return self.falling is not None or self.update is not None

    def made(self, sparsity: Sparsity) -> tuple[Update, ...]:
        """The updates, in turn."""
        falling = () if self.falling is None else (self.falling.update(sparsity),)
        other = () if self.update is None else (self.update(sparsity),)
        regrowth = () if self.regrowth is None else (self.regrowth.update(),)
        return (*falling, *other, *regrowth)


@dataclass(frozen=True)
class WeightRules:
    """What is kept of weights, and what new ones begin with; see :class:`sparsefx.Rules`.

    Attributes:
        new_weights: value of a weight that becomes active.
        inactive_buffers: the optimizer's buffers where a weight is inactive.
        memory: which weights learn, if inactive ones keep their values.
        backward: how much denser the learning set is than the active one.
        least: how far a stored weight may go below 0 in its position's sign, made for the method's
            :class:`Sparsity`.
        gradient_terms: added to the gradient, made for the method's :class:`Sparsity`.
        signs: positions are bound to signs.
        explores: keep count of what was ever active.
    """

    new_weights: Literal["zero", "initial", "sign"] = "zero"
    inactive_buffers: Literal["keep", "zero_on_grow", "mask"] = "keep"
    memory: Literal["all", "active", "backward"] | None = None
    backward: float = 0.0
    least: Callable[[Sparsity], float] | None = None
    gradient_terms: Callable[[Sparsity], tuple[GradientTerm, ...]] | None = None
    signs: bool = False
    explores: bool = False

    def __post_init__(self) -> None:
        check_choice("new_weights", self.new_weights, "zero", "initial", "sign")
        check_choice("inactive_buffers", self.inactive_buffers, "keep", "zero_on_grow", "mask")
        check_choice("memory", self.memory, None, "all", "active", "backward")
        check_fraction("backward", self.backward)
        check_function("least", self.least)
        check_function("gradient_terms", self.gradient_terms)
        check_flags(self, "signs", "explores")
        self._check_memory()

    def _check_memory(self) -> None:
        if self.memory is not None and self.new_weights != "zero":
            raise ArgumentError(
                f"new_weights={self.new_weights!r}: with a memory new weights have their stored values"
            )
        if self.memory is None and (self.least is not None or self.backward != 0):
            raise ArgumentError("least and backward belong to a memory: set memory='backward' or 'all'")
        if not self.signs and (self.new_weights == "sign" or self.least is not None):
            raise ArgumentError("new_weights='sign' and least need signs=True")


def _no_options(sparsity: Sparsity) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Penalty:
    """Train all weights under a penalty that decides the masks in the end.

    Attributes:
        regulariser: a name in :data:`sparsefx.regularisers.REGULARISERS`.
        options: its arguments, made for the method's :class:`Sparsity`.
    """

    regulariser: str
    options: Callable[[Sparsity], Mapping[str, Any]] = field(default=_no_options)

    def __post_init__(self) -> None:
        check_choice("regulariser", self.regulariser, *REGULARISERS)
        if not callable(self.options):
            raise ArgumentError(f"options={self.options!r} is not a function of the method's Sparsity")
