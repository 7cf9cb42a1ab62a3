"""One cell of a table: a query on the ledger's runs, beside the published numbers.

Runs that differ in anything but their seed are never averaged: a query finds groups of repetitions, and
every group beyond the plain one carries a label that says what is different about it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsefx.experiments.metrics import metric_named
from sparsefx.experiments.published import Published
from sparsefx.experiments.recipes import RECIPES
from sparsefx.experiments.record import Run, canonical
from sparsefx.experiments.statistics import Mean, difference, mean_of

COPIES: dict[str, tuple[str, str]] = {
    "cifar10-jpeg": ("cifar10", "JPEG copy of CIFAR-10"),
    "cifar10-folder": ("cifar10", "CIFAR-10 from a folder of images"),
}
"""Data sets that stand in for another: name -> (the other's name, label)."""

CLASSES = {"mnist": 10, "cifar10": 10, "imagenet": 1000}
"""How many classes a data set has, whose logarithm is the loss of guessing."""

_SAME_DENSITY = 0.01  # relative
_GUESSING = 0.99  # of that loss

Group = list[Run]
"""Runs of one configuration, which differ in their seeds alone."""

Recipes = Mapping[tuple[str, str, bool], Mapping[str, Any]]
"""The usual recipe by network, data and whether it is shortened."""


@dataclass(frozen=True)
class Query:
    """Which runs a cell is about.

    Attributes:
        network: name of the network.
        data: name of the data set; its copies are found too, as groups of their own.
        method: name of the method.
        density: fraction of the maskable weights asked for.
        options: what is set otherwise than in the method; other runs are not found.
        any_density: find runs at every density, for methods whose density is an outcome.
        any_options: find runs with other options too, as groups of their own.
    """

    network: str
    data: str
    method: str
    density: float
    options: Mapping[str, Any] = field(default_factory=dict)
    any_density: bool = False
    any_options: bool = False

    def __call__(self, run: Run) -> bool:
        """Whether the cell is about this run."""
        original, _ = COPIES.get(run.data, (run.data, ""))
        return (
            (run.network, original, run.method) == (self.network, self.data, self.method)
            and (self.any_density or run.density == self.density)
            and (self.any_options or run.options == dict(self.options))
        )


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        query: which runs.
        metric: what of them, a name in :data:`~sparsefx.experiments.metrics.METRICS`.
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
    found = []
    for group in groups(filter(cell.query, runs)):
        mean = _mean(group, cell.metric)
        if mean is not None and cell.baseline is not None:
            mean = _difference(mean, group, cell, runs)
        if mean is not None:
            found.append(Measured(mean, label(group, recipes, cell.query)))
    return found


def groups(runs: Iterable[Run]) -> list[Group]:
    """Runs by configuration: full recipes, original data and no options first, then those with more seeds.

    Runs that learnt nothing are groups of their own, so that one of them does not hide what the others did.
    """
    found: dict[tuple[str, bool], Group] = {}
    for run in runs:
        found.setdefault((_key(run, "seed"), only_guesses(run)), []).append(run)
    order = sorted(found, key=lambda key: (_rank(found[key][0]), -len(found[key]), key))
    return [found[key] for key in order]


def only_guesses(run: Run) -> bool:
    """Whether a run ended without having learnt anything: its loss is not finite, or that of guessing."""
    original, _ = COPIES.get(run.data, (run.data, ""))
    loss = run.final.train_loss
    return loss is None or loss >= _GUESSING * math.log(CLASSES.get(original, math.inf))


def usual_recipes(runs: Iterable[Run]) -> Recipes:
    """The recipe of runs nearest to the published one, by network, data and whether it is shortened.

    Of several as near, or where none is published, that of most runs.
    """
    counts: dict[tuple[str, str, bool], Counter[str]] = {}
    known: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        text = canonical(run.recipe)
        known[text] = run.recipe
        counts.setdefault((run.network, run.data, run.shortened), Counter())[text] += 1
    return {
        kind: known[min(found, key=lambda text: (_distance(known[text]), -found[text], text))]
        for kind, found in counts.items()
    }


def _distance(recipe: Mapping[str, Any]) -> int:
    """In how many fields a recipe is not the published one that it names as its source."""
    published = {found.source: asdict(found) for found in RECIPES.values()}.get(recipe.get("source", ""))
    if published is None:
        return 0
    wanted = {**published, "milestones": list(published["milestones"]), "precision": "float32"}
    return len(_changes(recipe, {**recipe, **wanted}))


def label(group: Group, recipes: Recipes, query: Query) -> str:
    """What sets a group apart: the data's copy, a shortened or other recipe, options, the density reached."""
    run = group[0]
    parts = [COPIES[run.data][1]] if run.data in COPIES else []
    if run.shortened:
        parts.append("shortened")
    if only_guesses(run):
        parts.append("learnt nothing")
    usual = recipes.get((run.network, run.data, run.shortened), run.recipe)
    parts += _changes(run.options, query.options) + _changes(run.recipe, usual)
    reached = sum(run.final.density for run in group) / len(group)
    if abs(reached - query.density) > _SAME_DENSITY * query.density:
        parts.append(f"{100 * reached:.3g}% of the weights")
    return ", ".join(parts)


def _changes(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    fields, usual = _flat(fields), _flat(usual)
    changed = [name for name in sorted({*fields, *usual}) if fields.get(name) != usual.get(name)]
    return [f"{name}={fields.get(name)}" for name in changed]


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, those that the method's own paper sets among them."""
    return {**{name: value for name, value in fields.items() if name != "tuned"}, **fields.get("tuned", {})}


def _difference(mean: Mean, group: Group, cell: Cell, runs: Sequence[Run]) -> Mean | None:
    """``mean`` minus the baseline's, from runs alike in all but options; None if there are none."""
    assert cell.baseline is not None
    alike = _key(group[0], "seed", "options")
    base = _mean(
        [
            run
            for run in filter(cell.baseline, runs)
            if _key(run, "seed", "options") == alike and not only_guesses(run)
        ],
        cell.metric,
    )
    return None if base is None else difference(mean, base)


def _mean(runs: Iterable[Run], metric: str) -> Mean | None:
    measure_run = metric_named(metric)
    values = [value for run in runs if (value := measure_run(run)) is not None]
    return mean_of(values) if values else None


def _rank(run: Run) -> tuple[bool, bool, bool, bool]:
    return run.shortened, run.data in COPIES, bool(run.options), only_guesses(run)


def _key(run: Run, *without: str) -> str:
    return canonical({name: value for name, value in run.configuration.items() if name not in without})
