"""Which fields of a method go together, and which values they may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sparsefx._common.distributions import DISTRIBUTIONS
from sparsefx._common.values import is_count, is_number
from sparsefx.cycle import PRUNE, ForAllLayers, Timing
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.methods.rounds import Rounds
from sparsefx.regularisers import REGULARISERS
from sparsefx.scores import SCORES

if TYPE_CHECKING:
    from sparsefx.methods.row import Method

_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "rounding": ("ceil", "floor"),
    "thin_scope": ("layer", "global"),
    "new_weights": ("zero", "initial", "sign"),
    "inactive_buffers": ("keep", "zero_on_grow", "mask"),
    "memory": (None, "all", "active", "backward"),
    "score": (None, *SCORES),
    "regulariser": (None, *REGULARISERS),
}
_FLAGS = ("constant_fan_in", "keeps_regrown", "replaces_step", "signs", "explores", "masks", "width")


def check_values(method: Method) -> None:
    """Refuse values that no method can have.

    Raises:
        ArgumentError: a field's value is none of its own.
    """
    for name, choices in _CHOICES.items():
        if getattr(method, name) not in choices:
            raise ArgumentError(
                f"{name}={getattr(method, name)!r} is not one of {', '.join(map(repr, choices))}"
            )
    for name in _FLAGS:
        if not isinstance(getattr(method, name), bool):
            raise ArgumentError(f"{name}={getattr(method, name)!r} is neither True nor False")
    _check_kinds(method)
    for name, (is_valid, wanted) in _NUMBERS.items():
        if not is_valid(getattr(method, name)):
            raise ArgumentError(f"{name}={getattr(method, name)!r} is not {wanted}")


def _check_kinds(method: Method) -> None:
    """Refuse what is of another type."""
    if isinstance(method.distribution, str) and method.distribution not in DISTRIBUTIONS:
        raise unknown_name("distribution", method.distribution, DISTRIBUTIONS)
    if not (isinstance(method.distribution, str) or callable(method.distribution)):
        raise ArgumentError(f"distribution={method.distribution!r} is neither a name nor a callable")
    for name in ("update", "least", "gradient_terms", "options"):
        value = getattr(method, name)
        if not (callable(value) or (value is None and name != "options")):
            raise ArgumentError(f"{name}={value!r} is not a function of the method")
    if not isinstance(method.timing, Timing | None):
        raise ArgumentError(
            f"timing={method.timing!r} is no sparsefx.Timing; every={method.timing!r} changes it"
        )
    if not isinstance(method.rounds, Rounds | None):
        raise ArgumentError(
            f"rounds={method.rounds!r} is no Rounds; prunings={method.rounds!r} changes how many"
        )


def check_together(method: Method) -> None:
    """Refuse fields that contradict each other.

    Raises:
        ArgumentError: names the fields and the remedy.
    """
    updates = method.prune is not None or method.update is not None or method.densities is not None
    prunings = 0 if method.rounds is None else method.rounds.prunings
    start = method.density if method.start is None else method.start
    swaps = method.prune_rate != 0 or method.redistribute != "none" or method.grow != "random"
    for wrong, message in (
        (
            not method.masks and not method.width and method.density != 1,
            f"density={method.density!r}: it masks nothing; leave density out, or choose another method",
        ),
        (
            not method.masks and bool(updates or method.score or method.regulariser or method.rounds),
            "masks=False leaves nothing to update, score or decide",
        ),
        (method.width and method.masks, "width=True narrows layers instead of masking them; set masks=False"),
        (
            method.prune is None and method.update is None and swaps,
            "prune_rate, redistribute and grow do nothing without prune='magnitude' or another one",
        ),
        (
            start != method.density and method.densities is None and method.update is None,
            f"start={method.start!r} and density={method.density!r} differ, but nothing changes the density: "
            "set densities='cubic', or leave start out",
        ),
        (
            start < method.density,
            f"start={method.start!r} is below density={method.density!r}; methods only thin",
        ),
        (
            updates and method.timing is None,
            "prune, densities or update without a timing would never act; set timing=sparsefx.Timing()",
        ),
        (
            bool(prunings) and (updates or method.score or method.regulariser),
            f"rounds with prunings={prunings} prune between rounds, so a method of their kind has no prune, "
            "densities, update, score or regulariser of its own",
        ),
        (
            method.rounds is not None and not prunings and not (method.regulariser or _thins(method)),
            "rounds with prunings=0 begin dense, and nothing makes this method sparse: set densities, update "
            "or a regulariser",
        ),
        (
            bool(method.score) and (method.rounds is not None or method.regulariser is not None),
            "score prunes before training; rounds and a regulariser need all weights then",
        ),
        (
            bool(method.regulariser) and (updates or method.memory is not None),
            "a regulariser decides the masks itself: leave prune, densities, update and memory out",
        ),
        (
            method.memory is not None and method.new_weights != "zero",
            f"new_weights={method.new_weights!r}: with a memory new weights have their stored values",
        ),
        (
            method.memory is None and (method.least is not None or method.backward != 0),
            "least and backward belong to a memory",
        ),
        (
            not method.signs and (method.new_weights == "sign" or method.least is not None),
            "new_weights='sign' and least need signs=True",
        ),
        (
            method.prune is not None and not method.prune_rate and not _decides_alone(method.prune),
            f"prune={method.prune!r} at prune_rate=0 removes nothing; set prune_rate=0.5",
        ),
    ):
        if wrong:
            raise ArgumentError(f"method {method.name!r}: {message}")


def _decides_alone(prune: Any) -> bool:
    """Whether a prune function takes no notice of the rate, as thresholds do."""
    return isinstance(PRUNE.get(prune, prune) if isinstance(prune, str) else prune, ForAllLayers)


def _thins(method: Method) -> bool:
    return method.densities is not None or method.update is not None


_NUMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "density": (
        lambda value: is_number(value) and 0 < value <= 1,
        "in (0, 1]; 0.05 keeps 5% of the weights",
    ),
    "start": (lambda value: value is None or (is_number(value) and 0 < value <= 1), "in (0, 1]"),
    "thin_until": (lambda value: is_number(value) and 0 < value <= 1, "in (0, 1]"),
    "prune_rate": (lambda value: is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "backward": (lambda value: is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "score_rounds": (is_count, "a whole number of at least 1"),
    "score_batches": (
        lambda value: value == "balanced" or is_count(value),
        "'balanced' or a whole number of at least 1",
    ),
}
