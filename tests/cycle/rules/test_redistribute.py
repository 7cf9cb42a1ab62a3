"""Redistribution statistics."""

from __future__ import annotations

import pytest
import torch

from sparsefx.cycle import REDISTRIBUTE, LayerState
from sparsefx.cycle.rules.redistribute import magnitude, momentum, none, nonzeros
from sparsefx.errors import CycleError

FULL = LayerState(
    "full",
    torch.tensor([2.0, -4.0]),
    torch.tensor([True, True]),
    torch.tensor([-1.0, 2.0]),
)
PART = LayerState(
    "part",
    torch.tensor([0.0, -3.0, 0.0]),
    torch.tensor([False, True, False]),
    torch.tensor([9.0, -0.5, 9.0]),
)
EMPTY = LayerState("empty", torch.zeros(3), torch.zeros(3, dtype=torch.bool), torch.ones(3))


def test_by_hand_over_active_weights_only():
    layers = [FULL, PART, EMPTY]
    assert momentum(layers) == [1.5, 0.5, 1.0]  # an empty layer by all its positions
    assert magnitude(layers) == [3.0, 3.0, 0.0]
    assert nonzeros(layers) == [2.0, 1.0, 0.0]
    assert none(layers) is None


def test_momentum_that_is_missing():
    with pytest.raises(CycleError, match=r"no momentum for 'bare'; call cycle\(\) after at least one step"):
        momentum([LayerState("bare", torch.ones(2), torch.ones(2, dtype=torch.bool))])


@pytest.mark.parametrize("name", sorted(REDISTRIBUTE))
def test_permuting_layers_permutes_statistics(name):
    statistics = REDISTRIBUTE[name]([FULL, PART, EMPTY])
    permuted = REDISTRIBUTE[name]([EMPTY, FULL, PART])
    assert permuted == (statistics and [statistics[2], statistics[0], statistics[1]])
