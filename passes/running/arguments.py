"""The arguments of a call where some go by name: what stands for the tuple of those that go by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Arguments(NamedTuple):
    """Arguments of a call; a tree of containers, as a tuple of positional ones is.

    Attributes:
        args: those by position.
        kwargs: those by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def args_and_kwargs(inputs: Sequence[Any]) -> Arguments:
    """Arguments, of which a plain sequence has positional ones alone."""
    return inputs if isinstance(inputs, Arguments) else Arguments(tuple(inputs), {})
