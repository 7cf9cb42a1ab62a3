"""Figures of a history hold its numbers, for one layer and for many."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from helpers import masked_mlp

import sparsefx
from sparsefx import ArgumentError, plot
from sparsefx.cycle import CycleRecord, LayerRecord

pytest.importorskip("matplotlib")

DRAWINGS = ("densities", "growth_shares", "turnover")
HOSTILE = ["_hidden", "$x^{", "a$b$c", "<b>&amp;", "nul\0bell\a", "\\frac$$", "long." * 40]


def history(names: list[str], cycles: int) -> list[CycleRecord]:
    """Layers of 100 positions; the numbers of each layer and cycle differ."""
    records = []
    for cycle in range(1, cycles + 1):
        layers = [
            LayerRecord(name, cycle + i % 7, 2 * cycle, (i + 1) / 1000, (i + cycle) / 400, i + cycle, 400)
            for i, name in enumerate(names)
        ]
        records.append(CycleRecord(cycle, 10 * cycle, 0.5, tuple(layers)))
    return records


def drawn(figure: Any) -> Any:
    """The figure, after it was drawn once without a warning."""
    figure.savefig(io.BytesIO())
    return figure


def lines(panel: Any) -> list[list[float]]:
    return [line.get_ydata(orig=False).tolist() for line in panel.lines]


def rows(panel: Any) -> list[list[float]]:
    (mesh,) = panel.collections
    return mesh.get_array().tolist()


def by_layer(records: list[CycleRecord], value: Any) -> list[Any]:
    """Percent, a list for each layer."""
    return [
        pytest.approx([100 * value(layer) for layer in layers])
        for layers in zip(*(record.layers for record in records), strict=True)
    ]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("count", "shown"), [slow(1, lines), (10, lines), (11, rows), slow(40, rows)])
def test_figures_hold_the_numbers_of_the_history(count: int, shown: Any) -> None:
    records = history([f"layer{i}" for i in range(count)], 5)
    densities = shown(drawn(plot.densities(records)).axes[0])
    assert densities[:count] == by_layer(records, lambda layer: layer.density)
    totals = [
        sum(y.active for y in record.layers) / sum(y.numel for y in record.layers) for record in records
    ]
    assert densities[count:] == [pytest.approx([100 * total for total in totals])]
    shares = drawn(plot.growth_shares(records))
    assert shown(shares.axes[0]) == by_layer(records, lambda layer: layer.share)
    pruned, grown = drawn(plot.turnover(records)).axes[:2]
    assert shown(pruned) == by_layer(records, lambda layer: layer.pruned / layer.numel)
    assert shown(grown) == by_layer(records, lambda layer: layer.grown / layer.numel)


def test_cycles_stand_at_their_numbers() -> None:
    records = history(["a", "b"], 6)[2:]
    assert plot.densities(records).axes[0].lines[0].get_xdata().tolist() == [3, 4, 5, 6]
    many = history([str(i) for i in range(20)], 6)[1::2]
    (mesh,) = plot.growth_shares(many).axes[0].collections
    assert mesh.get_coordinates()[0, :, 0].tolist() == [1.5, 3.5, 5.5, 6.5]


def test_as_many_layers_are_named_as_there_is_room_for() -> None:
    figure = drawn(plot.growth_shares(history([f"layer{i}" for i in range(150)], 3)))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["layer0", "layer2"]
    assert len(labels) == 75


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("padding", [0, 20])
def test_names_are_shown_as_they_are(name: str, padding: int) -> None:
    names = [*HOSTILE, *(f"layer{i}" for i in range(padding))]
    figure = drawn(getattr(plot, name)(history(names, 2)))
    texts = figure.legends[0].get_texts() if not padding else figure.axes[0].get_yticklabels()
    shown = [text.get_text().replace(r"\$", "$") for text in texts]
    assert shown[:4] == HOSTILE[:4]
    assert shown[4] == "nul\N{REPLACEMENT CHARACTER}bell\N{REPLACEMENT CHARACTER}"
    assert shown[5] == HOSTILE[5]
    assert shown[6].startswith("long.long.")
    assert len(shown[6]) == 64


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("count", [2, 20])
def test_zeros_can_be_drawn(name: str, count: int) -> None:
    layers = tuple(LayerRecord(f"layer{i}", 0, 0, 0.0, 0.0, 0, 10) for i in range(count))
    drawn(getattr(plot, name)([CycleRecord(1, 10, 0.0, layers)]))


def test_the_history_of_training() -> None:
    model = masked_mlp(8, 6, 4, density=0.25)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=5)
    for _ in range(3):
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        optimizer.cycle()
    shares = lines(drawn(plot.growth_shares(optimizer.history)).axes[0])
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([100] * 3)


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "history is empty; run at least one cycle"),
        (3, "history must be a list of CycleRecord, got int; pass optimizer.history"),
        ([1], "history must hold CycleRecords alone, got a int; pass optimizer.history"),
        ([*history(["a"], 1), *history(["b"], 1)], "history has other layers at cycle 1"),
    ],
)
def test_what_is_no_history_is_refused(name: str, wrong: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        getattr(plot, name)(wrong)
