"""What a score may look at, and the copy of the model that it works on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import bare, masked_weights

Batch = tuple[Tensor, Any]
"""Inputs (n, ...) and what the loss compares the outputs with."""

Loss = Callable[[Any, Any], Tensor]
"""``(output, target)`` to the mean loss of a batch, a scalar."""


@dataclass(frozen=True, eq=False)
class ScoringContext:
    """A masked model and what it is for.

    Attributes:
        model: the masked model; also one wrapped by ``torch.compile`` or DistributedDataParallel.
        batches: pairs (inputs, targets) on the model's device, of which there may be several; it is
            gone through more than once, so a list or a data loader, not an iterator.
        loss: ``(output, target)`` to the mean loss of a batch.
        generator: source of what is random; torch's global one by default.

    Raises:
        ArgumentError: ``batches`` can be gone through only once.
    """

    model: nn.Module
    batches: Iterable[Batch] = ()
    loss: Loss = F.cross_entropy
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if iter(self.batches) is self.batches:
            raise ArgumentError(
                f"batches is a {type(self.batches).__name__}, which can be gone through only once; "
                "make a list of it"
            )

    def data(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            ArgumentError: there are none.
        """
        empty = True
        for inputs, targets in self.batches:
            empty = False
            yield inputs, targets
        if empty:
            raise ArgumentError(
                "batches is empty and this score needs data; pass batches=[(inputs, targets)]"
            )

    @contextmanager
    def scratch(self, *, training: bool) -> Iterator[nn.Module]:
        """A copy of the model, in one mode, to do with as a score likes.

        So the model stays as it is found: parameters, gradients, buffers (running statistics), modes.
        Random numbers are set back too. Derivatives by masked weights can be taken, also by frozen ones.
        """
        model = copy.deepcopy(bare(self.model)).train(training)
        for layer in masked_weights(model):
            layer.weight.requires_grad_(True)
        devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield model
