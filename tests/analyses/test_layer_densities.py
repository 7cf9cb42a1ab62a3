"""Layer densities from the records of cycles."""

from __future__ import annotations

import pytest
import torch
from helpers import masked_mlp

import sparsefx
from sparsefx.analyses.layer_densities import layer_densities
from sparsefx.cycle import CycleRecord, LayerRecord
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import masked_weights


def record(cycle: int, *active: int, numels: tuple[int, ...] = (10, 40)) -> CycleRecord:
    layers = tuple(
        LayerRecord(f"layer{index}", 1, 1, 0.5, count / numel, count, numel)
        for index, (count, numel) in enumerate(zip(active, numels, strict=True))
    )
    return CycleRecord(cycle, 100 * cycle, 0.5, layers)


def test_by_hand() -> None:
    found = layer_densities([record(1, 5, 10), record(2, 10, 5)])
    assert found.names == ("layer0", "layer1")
    assert found.steps == (100, 200)
    assert found.densities.tolist() == [[0.5, 0.25], [1.0, 0.125]]
    assert found.total.tolist() == pytest.approx([0.3, 0.3])
    assert found.as_dict() == {
        "names": ["layer0", "layer1"],
        "numel": [10, 40],
        "steps": [100, 200],
        "densities": [[0.5, 0.25], [1.0, 0.125]],
    }
    assert str(found).splitlines()[-1].split() == ["200", "1.0000", "0.1250"]


def test_the_history_of_training() -> None:
    model = masked_mlp(8, 6, 4, density=0.25)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=10)
    for _ in range(3):
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        optimizer.cycle()
    found = layer_densities(optimizer.history)
    assert found.densities.shape == (3, 2)
    assert found.densities[-1].tolist() == pytest.approx([m.density for m in masked_weights(model)])
    assert found.total.tolist() == pytest.approx([0.25] * 3)


def test_no_history() -> None:
    with pytest.raises(ArgumentError, match="history is empty; run at least one cycle"):
        layer_densities([])


def test_records_of_different_models() -> None:
    with pytest.raises(ArgumentError, match="history has other layers at cycle 2 than at cycle 1"):
        layer_densities([record(1, 5, 10), record(2, 5, 10, numels=(10, 50))])
