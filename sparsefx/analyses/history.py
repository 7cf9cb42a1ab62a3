"""What the records of cycles say of each layer, as a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsefx.cycle import CycleRecord, LayerRecord
from sparsefx.errors import ArgumentError


def by_layer(history: Sequence[CycleRecord], value: Callable[[LayerRecord], float]) -> Tensor:
    """One number of every layer after every cycle, float64, shape (cycles, layers).

    Args:
        history: records of one model's cycles, in order.
        value: the number.

    Raises:
        ArgumentError: there is no record, or the records are not all of the same layers, or are none.
    """
    _check(history)
    rows = [[value(layer) for layer in record.layers] for record in history]
    return torch.tensor(rows, dtype=torch.float64)


def _check(history: Sequence[CycleRecord]) -> None:
    if not isinstance(history, Sequence):
        raise ArgumentError(
            f"history must be a list of CycleRecord, got {type(history).__name__}; pass optimizer.history"
        )
    if not history:
        raise ArgumentError("history is empty; run at least one cycle")
    for record in history:
        if not isinstance(record, CycleRecord):
            raise ArgumentError(
                f"history must hold CycleRecords alone, got a {type(record).__name__}; pass optimizer.history"
            )
        if _layers(record) != _layers(history[0]):
            raise ArgumentError(
                f"history has other layers at cycle {record.cycle} than at cycle {history[0].cycle}; "
                "pass the records of one model"
            )


def _layers(record: CycleRecord) -> list[tuple[str, int]]:
    return [(layer.name, layer.numel) for layer in record.layers]
