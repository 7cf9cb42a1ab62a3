"""A run as JSON and back; what is damaged is refused and says where."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run
from properties import properties

from sparsefx.errors import LedgerError
from sparsefx.experiments.ledger.identity import run_name
from sparsefx.experiments.ledger.record import EpochRow, Final, LayerRow, Run, subsample

finite = st.floats(allow_nan=False, allow_infinity=False)
percent = st.floats(0, 100)
fraction = st.floats(0, 1)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
tables = st.dictionaries(st.text(), plain, max_size=3)
finals = st.builds(
    Final, percent, st.none() | percent, st.none() | finite, st.none() | finite, fraction, fraction
)
epochs = st.builds(
    EpochRow,
    st.integers(1, 500),
    st.none() | finite,
    st.none() | percent,
    st.none() | percent,
    finite,
    st.none() | fraction,
    st.lists(fraction, max_size=3).map(tuple),
)
layers = st.builds(
    LayerRow, st.text(), st.lists(st.integers(1, 9), max_size=4).map(tuple), st.integers(0), fraction
)
runs = st.builds(
    Run,
    network=st.text(),
    data=st.text(),
    method=st.text(),
    density=fraction,
    seed=st.integers(),
    options=tables,
    recipe=tables,
    shortened=st.booleans(),
    versions=st.dictionaries(st.text(), st.text(), max_size=2),
    hardware=st.text(),
    seconds=finite,
    finished=st.datetimes().map(lambda moment: moment.isoformat()),
    final=finals,
    epochs=st.lists(epochs, max_size=3).map(tuple),
    layers=st.lists(layers, max_size=3).map(tuple),
    analyses=tables,
)


@properties(60)
@given(runs)
def test_a_run_comes_back_from_json(run: Run) -> None:
    text = run.to_json()
    assert Run.from_json(text) == run
    assert Run.from_json(text).to_json() == text


def test_what_is_not_finite_becomes_null() -> None:
    run = made_run(recipe={"bound": math.inf})
    run = replace(run, final=replace(run.final, test_loss=math.nan, train_loss=-math.inf))
    again = Run.from_json(run.to_json())
    assert (again.final.test_loss, again.final.train_loss) == (None, None)
    assert again.recipe == {"bound": None}


def change(path: tuple[Any, ...], value: Any) -> str:
    """A run's JSON with one entry changed, or deleted where the value is ``...``."""
    whole = json.loads(made_run().to_json())
    entry = whole
    for name in path[:-1]:
        entry = entry[name]
    if value is ...:
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "its schema is 2, this version of sparsefx reads 1"),
        (("schema",), ..., "its schema is None"),
        (("network",), ..., "run lacks network"),
        (("network",), 3, "run.network is 3, not a str"),
        (("colour",), "red", "run has the unknown colour"),
        (("seed",), 1.5, "run.seed is 1.5, not a int"),
        (("seed",), True, "run.seed is True, not a int"),
        (("seconds",), "long", "run.seconds is 'long', not a float"),
        (("seconds",), True, "run.seconds is True, not a float"),
        (("seconds",), math.nan, "run.seconds is nan, not a finite number"),
        (("seconds",), 10**400, "run.seconds is inf, not a finite number"),
        (("density",), 5, "run.density is 5.0, not in"),
        (("finished",), "yesterday", "run.finished is 'yesterday', not an ISO 8601 date"),
        (("versions", "torch"), 2, "run.versions.torch is 2, not a str"),
        (("options",), [], "run.options is .., not a dict"),
        (("final", "test_error"), ..., "run.final lacks test_error"),
        (("final", "test_error"), None, "run.final.test_error is None, not a float"),
        (("final", "test_error"), 101, "run.final.test_error is 101.0, not a percentage"),
        (("epochs", 0, "densities", 1), "full", r"run.epochs\[0\].densities\[1\] is 'full', not a float"),
        (("layers", 0), 4, r"run.layers\[0\] is 4, not a dict"),
        (("layers", 0, "shape"), 784, r"run.layers\[0\].shape is 784, not a list"),
    ],
)
def test_what_is_damaged_says_where(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        Run.from_json(change(path, value))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(LedgerError, match="it is not JSON"):
        Run.from_json(text)


@properties()
@given(st.integers(0), st.sampled_from([b"", b"x", b"[", b"\n", b"9", b"-", b'"']), st.integers(1, 40))
def test_damage_anywhere_is_refused_or_still_a_run(start: int, patch: bytes, length: int) -> None:
    text = made_run().to_json().encode()
    start %= len(text)
    damaged = text[:start] + patch + text[start + length :]
    try:
        found = Run.from_json(damaged.decode())
    except LedgerError:
        return
    assert Run.from_json(found.to_json()) == found


def test_analyses_may_be_absent() -> None:
    assert Run.from_json(change(("analyses",), ...)).analyses == {}


def test_what_json_has_no_word_for() -> None:
    with pytest.raises(LedgerError, match="is not plain data"):
        made_run(options={"grow": object()}).to_json()


def test_names_tell_configurations_apart() -> None:
    run = made_run()
    name = run_name(run.configuration)
    assert name.startswith("lenet-300-100_mnist_sparse-momentum_0.05_0_")
    changes: list[dict[str, Any]] = [
        {"network": "lenet5-caffe"},
        {"data": "fashion"},
        {"method": "set"},
        {"density": 0.02},
        {"seed": 1},
        {"options": {"grow": "random"}},
        {"recipe": {"epochs": 50}},
        {"shortened": True},
    ]
    names = {run_name(made_run(**changed).configuration) for changed in changes}
    assert len(names | {name}) == len(changes) + 1
    same = made_run(2.0, seconds=1.0, hardware="another", versions={}, analyses={"a": 1})
    assert run_name(same.configuration) == name


def test_names_hold_no_path() -> None:
    name = run_name(made_run(network="../a b", density=1).configuration)
    assert name.startswith("..-a-b_mnist_sparse-momentum_1_0_")
    assert name == run_name(made_run(network="../a b", density=1.0).configuration)


@properties()
@given(st.integers(0, 300), st.integers(2, 30))
def test_subsampled_rows(count: int, limit: int) -> None:
    rows = subsample(range(count), limit)
    assert len(rows) == min(count, limit)
    assert list(rows) == sorted(set(rows))
    if count > limit:
        assert (rows[0], rows[-1]) == (0, count - 1)
        gaps = [later - earlier for earlier, later in pairwise(rows)]
        assert max(gaps) - min(gaps) <= 1
