"""What the figures draw, read off the drawing before it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import made_run

from sparsefx.experiments.tables import figures
from sparsefx.experiments.tables.paper import figure_2, figure_3

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would have been saved."""
    kept: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure) or path)
    return kept


def labels(panel: Any) -> set[str]:
    return set(panel.get_legend_handles_labels()[1])


def test_lines_of_means_beside_published_ones(drawn: list[Any]) -> None:
    runs = [
        *(made_run(error, seed=seed) for seed, error in enumerate((1.4, 1.6))),
        made_run(3.0, density=0.01),
        made_run(4.0, density=0.01, shortened=True, recipe={"epochs": 1}),
        made_run(1.3, method="dense", density=1.0),
    ]
    figures.line_figure(figure_2(), runs, Path("unused.png"))
    left, right = drawn[0].axes
    published = {f"{method} (paper)" for method in ("SET", "DSR", "DEEP-R", "sparse momentum", "dense")}
    assert published <= labels(left)
    assert labels(left) - labels(right) == {"sparse momentum", "sparse momentum, shortened", "dense"}
    (line,) = [found for found in left.containers if found.get_label() == "sparse momentum"]
    x, y = line.lines[0].get_data()
    assert list(zip(x, y, strict=True)) == [(1.0, 97.0), (5.0, pytest.approx(98.5))]


def test_histograms_or_not_run(drawn: list[Any]) -> None:
    analysis = {"mean": 0.3, "edges": [0.1, 0.5, 1.0], "layers": [{"counts": [3, 1]}, {"counts": [2, 2]}]}
    vgg: dict[str, Any] = {"network": "vgg16-d", "data": "cifar10-jpeg"}
    runs = [
        made_run(6.0, **vgg, method="dense", density=1.0, analyses={"specialisation": analysis}),
        made_run(6.0, **vgg, method="dense", density=1.0, seed=1, analyses={"specialisation": analysis}),
        made_run(6.5, **vgg),
    ]
    figures.histogram_figure(figure_3(), runs, Path("unused.png"))
    alexnet, found, wide = drawn[0].axes
    assert [text.get_text() for text in alexnet.texts + wide.texts] == ["not run"] * 2
    assert labels(found) == {"dense, 2 seeds, JPEG copy of CIFAR-10"}
    (steps,) = found.patches
    assert list(steps.get_data().values) == [10 / 16, 6 / 16]
