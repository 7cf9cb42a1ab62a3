"""Which fields of a method go together, and which values they may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sparsefx.errors import ArgumentError
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
_FLAGS = ("constant_fan_in", "keeps_regrown", "replaces_step", "signs", "explores", "width")


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
    for name, (is_valid, wanted) in _NUMBERS.items():
        if not is_valid(getattr(method, name)):
            raise ArgumentError(f"{name}={getattr(method, name)!r} is not {wanted}")


def check_together(method: Method) -> None:
    """Refuse fields that contradict each other.

    Raises:
        ArgumentError: names the fields and the remedy.
    """
    updates = method.prune is not None or method.update is not None or method.densities is not None
    prunings = 0 if method.rounds is None else method.rounds.prunings
    start = method.density if method.start is None else method.start
    for wrong, message in (
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
    ):
        if wrong:
            raise ArgumentError(f"method {method.name!r}: {message}")


def _thins(method: Method) -> bool:
    return method.densities is not None or method.update is not None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_NUMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "density": (lambda value: _is_number(value) and 0 < value <= 1, "in (0, 1]"),
    "start": (lambda value: value is None or (_is_number(value) and 0 < value <= 1), "in (0, 1]"),
    "thin_until": (lambda value: _is_number(value) and 0 < value <= 1, "in (0, 1]"),
    "prune_rate": (lambda value: _is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "backward": (lambda value: _is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "score_rounds": (_is_count, "a whole number of at least 1"),
    "score_batches": (
        lambda value: value == "balanced" or _is_count(value),
        "'balanced' or a whole number of at least 1",
    ),
}
