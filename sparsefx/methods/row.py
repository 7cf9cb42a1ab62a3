"""A method as data: one row of independent parts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sparsefx._common.registry import described, resolve
from sparsefx._common.values import is_count
from sparsefx.cycle import DECAY, Timing
from sparsefx.errors import ArgumentError
from sparsefx.methods import options as flat
from sparsefx.methods.checks import check_choice
from sparsefx.methods.parts import FirstMasks, Penalty, Sparsity, Updates, WeightRules
from sparsefx.methods.rounds import Rounds
from sparsefx.optim.rules import Rules


@dataclass(frozen=True)
class Method:
    """How a network becomes, or stays, sparse.

    :meth:`of` makes one of options alone. The attributes of the parts are the method's options, and can be
    read from the method itself: ``method.prune_rate`` is ``method.updates.prune_rate``.

    Attributes:
        name: what it is called.
        source: the paper and section it follows.
        sparsity: how sparse the network becomes.
        first_masks: the masks that training begins with.
        updates: how masks change while training; None if they do not.
        weights: what is kept of weights, and what new ones begin with.
        penalty: a penalty that decides the masks in the end; None without one.
        rounds: what happens between rounds of training; None for one round.
        score_batches: how many batches of training data ``sparsefx train`` gives a score, also between
            rounds; or ``"balanced"`` for one with ten samples of each class. :class:`Training` uses all
            that it is given.
        tier: ``"measured"`` against its paper's figures, on the page of results; or only ``"checked"``: held
            to what its paper says by tests.

    Raises:
        ArgumentError: parts contradict each other.
    """

    name: str
    source: str
    sparsity: Sparsity = field(default_factory=Sparsity)
    first_masks: FirstMasks = field(default_factory=FirstMasks)
    updates: Updates | None = None
    weights: WeightRules = field(default_factory=WeightRules)
    penalty: Penalty | None = None
    rounds: Rounds | None = None
    score_batches: int | Literal["balanced"] = 1
    tier: Literal["measured", "checked"] = "checked"

    def __post_init__(self) -> None:
        if not isinstance(self.rounds, Rounds | None):
            raise ArgumentError(
                f"rounds={self.rounds!r} is no Rounds; prunings={self.rounds!r} changes how many"
            )
        if not (self.score_batches == "balanced" or is_count(self.score_batches)):
            raise ArgumentError(
                f"score_batches={self.score_batches!r} is not 'balanced' or a whole number of at least 1"
            )
        check_choice("tier", self.tier, "measured", "checked")
        for problem in (self._density_problem(), self._masks_problem(), self._rounds_problem()):
            if problem:
                raise ArgumentError(f"method {self.name!r}: {problem}")

    @classmethod
    def of(cls, name: str, source: str, /, **options: Any) -> Method:
        """A method of options, which the parts are made from.

        Args:
            name: what it is called.
            source: the paper and section it follows.
            **options: attributes of the parts, of the method and of its timing and rounds, as in
                :meth:`with_`; ``sparsefx list options`` prints them.

        Raises:
            ArgumentError: an option is unknown, or a value cannot be used.

        Example:
            >>> import sparsefx
            >>> every_ten = sparsefx.Timing(every=10)
            >>> mine = Method.of("mine", "here", prune="magnitude", prune_rate=0.3, timing=every_ten)
            >>> mine.updates.regrowth.grow
            'random'
        """
        return cls(name, source).with_(**options)

    def with_(self, **changes: Any) -> Method:
        """The same with other values for some options, those of its timing, rounds and regulariser included.

        Raises:
            ArgumentError: an option is unknown, or a value cannot be used.

        Example:
            >>> import sparsefx
            >>> sparsefx.method("rigl", density=0.05).with_(grow="random", every=200).timing.every
            200
        """
        changed: Method = flat.with_changes(self, changes)
        changed.rules()  # so that what cannot be used is told now
        return changed

    def __str__(self) -> str:
        """A line for each option."""
        values = flat.options_of(self)
        values["options"] = {} if self.penalty is None else dict(self.penalty.options(self.sparsity))
        width = max(map(len, values))
        return "\n".join(f"{name:{width}}  {described(value)}" for name, value in values.items())

    if not TYPE_CHECKING:  # the library's own code names the part

        def __getattr__(self, name: str) -> Any:
            """An option, from the part that has it; its default where the method lacks the part."""
            if name in flat.NAMES:
                return flat.options_of(self)[name]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def density(self) -> float:
        """Fraction of the maskable weights that are active in the end, in (0, 1]."""
        return self.sparsity.density

    @property
    def timing(self) -> Timing | None:
        """When updates happen."""
        return None if self.updates is None else self.updates.timing

    @property
    def first_density(self) -> float:
        """The density at which training begins."""
        begins_dense = self.first_masks.score or self.penalty or self.rounds or not self.first_masks.masks
        return 1.0 if begins_dense else self.sparsity.first

    def rules(self) -> Rules:
        """What happens at steps and updates.

        Raises:
            ArgumentError: an option is neither a known name nor a callable.
        """
        rules = _weight_rules(self.weights, self.sparsity)
        if self.updates is None:
            return rules
        return dataclasses.replace(
            rules,
            updates=self.updates.made(self.sparsity),
            prune_rate=self.updates.prune_rate,
            decay=resolve("decay", self.updates.decay, DECAY),
            replaces_step=self.updates.replaces_step,
        )

    @property
    def _changes_density(self) -> bool:
        return self.updates is not None and self.updates.change_density

    def _density_problem(self) -> str:
        sparsity, first = self.sparsity, self.first_masks
        if not first.masks and not first.width and sparsity.density != 1:
            return (
                f"density={sparsity.density!r}: it masks nothing; leave density out, or choose another method"
            )
        if sparsity.first != sparsity.density and not self._changes_density:
            return (
                f"start={sparsity.start!r} and density={sparsity.density!r} differ, but nothing changes the "
                "density: set densities='cubic', or leave start out"
            )
        return ""

    def _masks_problem(self) -> str:
        """Whether two parts would decide the same masks, or one decides where there are none."""
        if not self.first_masks.masks and (self.updates or self.penalty or self.rounds):
            return "masks=False leaves nothing to update, score or decide"
        if self.penalty is not None and (self.updates or self.weights.memory is not None):
            return "a regulariser decides the masks itself: leave prune, densities, update and memory out"
        if self.first_masks.score is not None and (self.rounds is not None or self.penalty is not None):
            return "score prunes before training; rounds and a regulariser need all weights then"
        return ""

    def _rounds_problem(self) -> str:
        if self.rounds is None:
            return ""
        if self.rounds.prunings and (self.updates or self.penalty):
            return (
                f"rounds with prunings={self.rounds.prunings} prune between rounds, so a method of their "
                "kind has no prune, densities, update or regulariser of its own"
            )
        if not self.rounds.prunings and not (self.penalty or self._changes_density):
            return (
                "rounds with prunings=0 begin dense, and nothing makes this method sparse: set densities, "
                "update or a regulariser"
            )
        return ""


def _weight_rules(weights: WeightRules, sparsity: Sparsity) -> Rules:
    return Rules(
        new_weights=weights.new_weights,
        inactive_buffers=weights.inactive_buffers,
        memory=weights.memory,
        backward=weights.backward,
        least=None if weights.least is None else weights.least(sparsity),
        gradient_terms=() if weights.gradient_terms is None else weights.gradient_terms(sparsity),
        signs=weights.signs,
        explores=weights.explores,
    )
