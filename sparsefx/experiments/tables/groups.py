"""Groups of repetitions: runs that differ in their seed alone, and what sets a group apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sparsefx.experiments.ledger.identity import canonical
from sparsefx.experiments.ledger.record import Run
from sparsefx.experiments.run.recipes.papers import RECIPES
from sparsefx.experiments.tables.query import COPIES, Query, original

CLASSES = {"mnist": 10, "cifar10": 10, "imagenet": 1000}
"""How many classes a data set has, whose logarithm is the loss of guessing."""

_SAME_DENSITY = 0.01  # relative
_GUESSING = 0.99  # of that loss

Group = list[Run]
"""Runs of one configuration, which differ in their seeds alone."""

Recipes = Mapping[tuple[str, str, bool], Mapping[str, Any]]
"""The usual recipe by network, data and whether it is shortened."""


def groups(runs: Iterable[Run]) -> list[Group]:
    """Runs by configuration: full recipes, original data and no options first, then those with more seeds.

    Runs that learnt nothing are groups of their own, so that one of them does not hide what the others did.
    """
    by_key: dict[tuple[str, bool], Group] = {}
    for run in runs:
        by_key.setdefault((configuration_key(run, "seed"), only_guesses(run)), []).append(run)
    order = sorted(by_key, key=lambda key: (_rank(by_key[key][0]), -len(by_key[key]), key))
    return [by_key[key] for key in order]


def only_guesses(run: Run) -> bool:
    """Whether a run ended without having learnt anything: its loss is not finite, or that of guessing."""
    loss = run.final.train_loss
    return loss is None or loss >= _GUESSING * math.log(CLASSES.get(original(run.data), math.inf))


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
        kind: known[min(times, key=lambda text: (_distance(known[text]), -times[text], text))]
        for kind, times in counts.items()
    }


def _distance(recipe: Mapping[str, Any]) -> int:
    """In how many fields a recipe is not the published one that it names as its source."""
    published = {known.source: asdict(known) for known in RECIPES.values()}.get(recipe.get("source", ""))
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


def _rank(run: Run) -> tuple[bool, bool, bool, bool]:
    return run.shortened, run.data in COPIES, bool(run.options), only_guesses(run)


def configuration_key(run: Run, *without: str) -> str:
    """The configuration but for some of its fields, as text that is the same for equal ones."""
    return canonical({name: value for name, value in run.configuration.items() if name not in without})
