"""The ``example_inputs`` argument: the positional arguments of a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsefx.errors import ArgumentError


def positional(example_inputs: Any) -> tuple[Any, ...]:
    """Example inputs as a tuple of positional arguments; a bare tensor is the only argument.

    Raises:
        ArgumentError: it is neither a tensor nor a tuple or list.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    raise ArgumentError(
        "example_inputs must be a tuple of positional arguments like (x,), "
        f"got {type(example_inputs).__name__}"
    )
