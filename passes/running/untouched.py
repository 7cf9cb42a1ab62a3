"""Run a model on copies, so that looking at it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsefx.passes.running.attributes import kept_attributes


@contextmanager
def untouched(model: nn.Module, inputs: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Copies of the inputs for one run, after which the model's buffers and attributes are what they were.

    A forward may write into its input, or count its calls in a buffer or an attribute; looking at a model
    must not change it.
    """
    with kept_attributes(model), same_buffers(model, inputs) as copies:
        yield copies


@contextmanager
def same_buffers(model: nn.Module, inputs: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Copies of the inputs for what is done to the model, after which its buffers are what they were."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tuple(inputs))
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)
