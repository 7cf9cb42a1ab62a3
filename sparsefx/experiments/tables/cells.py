"""One cell of a table: a query on the ledger's runs, beside the published numbers.

Runs that differ in anything but their seed are never averaged: a query finds groups of repetitions, and
every group beyond the plain one has a label that says what is different about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsefx.experiments.ledger.metrics import metric_named
from sparsefx.experiments.ledger.record import Run
from sparsefx.experiments.ledger.statistics import Mean, difference, mean_of
from sparsefx.experiments.tables.groups import (
    Group,
    Recipes,
    configuration_key,
    groups,
    label,
    only_guesses,
)
from sparsefx.experiments.tables.published import Published
from sparsefx.experiments.tables.query import Query


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        query: which runs.
        metric: what of them, a name in :data:`~sparsefx.experiments.ledger.metrics.METRICS`.
        published: the numbers to set beside.
        baseline: show the difference to the mean of these runs; they have the same recipe and data.
    """

    query: Query
    metric: str = "test error"
    published: tuple[Published, ...] = ()
    baseline: Query | None = None


@dataclass(frozen=True)
class Measured:
    """The mean of one group, and what sets the group apart (``""``: nothing)."""

    mean: Mean
    label: str


def measure(cell: Cell, runs: Sequence[Run], recipes: Recipes) -> list[Measured]:
    """The mean of every group that a cell's query finds, the plain one first; empty if nothing was run."""
    measured = []
    for group in groups(filter(cell.query, runs)):
        mean = _mean(group, cell.metric)
        if mean is not None and cell.baseline is not None:
            mean = _difference(mean, group, cell, runs)
        if mean is not None:
            measured.append(Measured(mean, label(group, recipes, cell.query)))
    return measured


def _difference(mean: Mean, group: Group, cell: Cell, runs: Sequence[Run]) -> Mean | None:
    """``mean`` minus the baseline's, from runs alike in all but options; None if there are none."""
    assert cell.baseline is not None
    alike = configuration_key(group[0], "seed", "options")
    base = _mean(
        [
            run
            for run in filter(cell.baseline, runs)
            if configuration_key(run, "seed", "options") == alike and not only_guesses(run)
        ],
        cell.metric,
    )
    return None if base is None else difference(mean, base)


def _mean(runs: Iterable[Run], metric: str) -> Mean | None:
    measure_run = metric_named(metric)
    values = [value for run in runs if (value := measure_run(run)) is not None]
    return mean_of(values) if values else None
