"""The ``example_inputs`` and ``example_kwargs`` arguments: one call of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsefx.errors import ArgumentError
from sparsefx.passes.running.arguments import Arguments


def call_of(example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """Example inputs as a tuple of positional arguments, or as :class:`Arguments` where some go by name.

    A bare tensor is the only argument.

    Raises:
        ArgumentError: the inputs are neither a tensor nor a tuple or list, or ``example_kwargs`` no dict of
            arguments by name.
    """
    if isinstance(example_inputs, Arguments):
        return example_inputs
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if not isinstance(example_inputs, (tuple, list)):
        raise ArgumentError(
            "example_inputs must be a tuple of positional arguments like (x,), "
            f"got {type(example_inputs).__name__}; arguments by name go to example_kwargs"
        )
    named = {} if example_kwargs is None else example_kwargs
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
        raise ArgumentError(
            f"example_kwargs must be arguments by name like {{'mask': mask}}, got {type(named).__name__}"
        )
    return Arguments(tuple(example_inputs), dict(named)) if named else tuple(example_inputs)
