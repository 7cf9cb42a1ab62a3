"""The options of a method by name, looked up in its parts, and parts made from options.

A part that may be missing is there if one of its options is set, its *key*: pruning and regrowing if
``prune`` is. Set to None it takes the part away. Any other option of a missing part has to stay as it is by
default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from sparsefx.cycle import Timing
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.methods.parts import (
    FallingDensity,
    FirstMasks,
    Penalty,
    Regrowth,
    Sparsity,
    Updates,
    WeightRules,
)
from sparsefx.methods.rounds import Rounds
from sparsefx.regularisers import REGULARISERS

PARTS: dict[str, type] = {
    "sparsity": Sparsity,
    "first_masks": FirstMasks,
    "updates": Updates,
    "falling": FallingDensity,
    "regrowth": Regrowth,
    "weights": WeightRules,
    "penalty": Penalty,
}
"""The kind of each part, by the attribute that holds it."""

_KEYS = {
    Updates: ("timing", "timing=sparsefx.Timing()"),
    FallingDensity: ("densities", "densities='cubic'"),
    Regrowth: ("prune", "prune='magnitude' or another one"),
    Penalty: ("regulariser", "regulariser='hard_concrete' or another one"),
}
"""The key of a part that may be missing, and what to set it to."""

_WHOLE: dict[str, type] = {"timing": Timing, "rounds": Rounds}
"""Options with attributes of their own, which are options as well."""

NAMES = frozenset(field.name for kind in PARTS.values() for field in dataclasses.fields(kind)) - PARTS.keys()
"""The options that parts have."""


def options_of(method: Any) -> dict[str, Any]:
    """All options of a method by name; of parts that it lacks, the defaults."""
    return _options(type(method), method)


def with_changes(method: Any, changes: Mapping[str, Any]) -> Any:
    """A method with other values for some options; see :meth:`sparsefx.Method.with_`.

    Raises:
        ArgumentError: an option is unknown, of a part that the method lacks, or has a wrong value.
    """
    before, changed = options_of(method), dict(changes)
    for name in _WHOLE:
        _change_inside(name, before, changed)
    arguments = _change_arguments(before, changed)
    for name in changed:
        if name in ("seed", "generator"):
            raise ArgumentError(f"{name}= is no part of a method; give it to what trains by the method")
        if name not in before:
            raise unknown_name("method option", name, {*before, *_names_inside(), *arguments})
    for kind, (key, _) in _KEYS.items():
        if key in changed and changed[key] is None:  # a part goes with all its options
            before |= _options(kind, None)
    return _made(type(method), {**before, **changed})


@dataclass(frozen=True)
class _Arguments:
    """A regulariser's arguments, some of them changed."""

    before: Callable[[Sparsity], Mapping[str, Any]]
    changed: tuple[tuple[str, Any], ...]

    def __call__(self, sparsity: Sparsity) -> Mapping[str, Any]:
        return {**self.before(sparsity), **dict(self.changed)}


def _names_inside() -> set[str]:
    return {field.name for kind in _WHOLE.values() for field in dataclasses.fields(kind)}


def _change_inside(name: str, before: Mapping[str, Any], changed: dict[str, Any]) -> None:
    """Take out of the changes what is of a timing or of rounds, and change these."""
    names = {field.name for field in dataclasses.fields(_WHOLE[name])} - before.keys()
    inside = {option: changed.pop(option) for option in names & changed.keys()}
    if not inside:
        return
    present = changed.get(name, before[name])
    if not isinstance(present, _WHOLE[name]):
        raise ArgumentError(f"{', '.join(sorted(inside))}: method {before['name']!r} has no {name} to change")
    changed[name] = dataclasses.replace(present, **inside)  # type: ignore[type-var]


def _change_arguments(before: Mapping[str, Any], changed: dict[str, Any]) -> set[str]:
    """Take out of the changes what are arguments of the regulariser; the names of all of these."""
    regulariser = REGULARISERS.get(changed.get("regulariser", before["regulariser"]) or "")
    names = set() if regulariser is None else signature(regulariser).parameters.keys() - before.keys()
    chosen = {option: changed.pop(option) for option in list(changed) if option in names}
    if chosen:
        changed["options"] = _Arguments(changed.get("options", before["options"]), tuple(chosen.items()))
    return names


def _options(kind: type, part: Any) -> dict[str, Any]:
    """The options of a part and of those inside it; the defaults if there is none."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = _default(field) if part is None else getattr(part, field.name)
        found |= _options(PARTS[field.name], value) if field.name in PARTS else {field.name: value}
    return found


def _made(kind: type, options: Mapping[str, Any]) -> Any:
    """A part of these options; None for one whose key is not set."""
    values = {
        field.name: _made(PARTS[field.name], options) if field.name in PARTS else options[field.name]
        for field in dataclasses.fields(kind)
    }
    key, example = _KEYS.get(kind, ("", ""))
    if not key or values[key] is not None:
        return kind(**values)
    idle = _idle(kind, options)
    if idle:
        raise ArgumentError(
            f"method {options['name']!r}: {', '.join(idle)} has no effect without {key}; set {example}"
        )
    return None


def _idle(kind: type, options: Mapping[str, Any]) -> list[str]:
    """Options of a missing part that are set all the same."""
    return [
        f"{name}={options[name]!r}"
        for name, default in _options(kind, None).items()
        if options[name] != default
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    """An option's value where its part is missing: None for the key."""
    return None if field.default is dataclasses.MISSING else field.default
