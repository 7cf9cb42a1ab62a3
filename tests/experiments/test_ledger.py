"""The folder of runs: what is added is found, nothing is overwritten silently, damage is named."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from made_runs import made_run

from sparsefx.errors import ArgumentError, LedgerError
from sparsefx.experiments.ledger import Ledger
from sparsefx.experiments.record import EpochRow
from sparsefx.experiments.statistics import mean_of


def test_runs_are_found_by_their_fields(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "results")
    ledger.add(made_run(seed=0))
    ledger.add(made_run(seed=1))
    ledger.add(made_run(seed=0, method="set", options={"prune_rate": 0.3}))
    assert {run.seed for run in ledger.runs(method="sparse-momentum")} == {0, 1}
    assert ledger.runs(seed=0, options={"prune_rate": 0.3}) == ledger.runs(method="set")
    assert len(ledger.runs()) == 3
    assert ledger.runs(density=0.01) == []


def test_an_unknown_field(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="filter='methods' is not known; did you mean 'method'"):
        Ledger(tmp_path).runs(methods="set")


def test_a_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    run = made_run(options={"grow": "random"}, analyses={"notes": [1, None, "a"]})
    Ledger(tmp_path).add(run)
    assert Ledger(tmp_path).runs() == [run]


def test_at_most_25_epochs_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    rows = tuple(EpochRow(number, 0.1, None, None, 0.1, None, ()) for number in range(1, 101))
    path = ledger.add(made_run(epochs=rows))
    kept = ledger.runs()[0].epochs
    assert (len(kept), kept[0].epoch, kept[-1].epoch) == (25, 1, 100)
    assert ledger.add(made_run(epochs=rows)) == path


def test_the_same_run_again_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    path = ledger.add(made_run(density=1, method="dense", options={"layers": ("a", "b")}))
    before = path.stat().st_mtime_ns
    assert ledger.add(ledger.runs()[0]) == path
    assert path.stat().st_mtime_ns == before


def test_a_different_run_is_not_overwritten_silently(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    path = ledger.add(made_run(1.5))
    with pytest.raises(LedgerError, match=r"holds a different run .* pass overwrite=True"):
        ledger.add(made_run(1.6))
    assert [run.final.test_error for run in ledger.runs()] == [1.5]
    assert ledger.add(made_run(1.6), overwrite=True) == path
    assert [run.final.test_error for run in ledger.runs()] == [1.6]
    assert os.listdir(tmp_path) == [path.name]


def test_a_run_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"run.final.test_error is 120.0"):
        Ledger(tmp_path).add(made_run(120.0))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"schema": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    ledger = Ledger(tmp_path)
    path = ledger.add(made_run())
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=rf"{path.name} is damaged: .*; restore it, or delete it"):
        ledger.runs()


def test_unfinished_files_are_not_runs(tmp_path: Path) -> None:
    (tmp_path / ".abc.partial").write_text("{")
    assert Ledger(tmp_path).runs() == []


def race(tmp_path: Path, errors: list[float]) -> list[Path | LedgerError]:
    """Add one run for each error at once, from as many threads."""
    ledger, start = Ledger(tmp_path), threading.Barrier(len(errors))
    outcomes: list[Path | LedgerError] = []

    def add(error: float) -> None:
        start.wait()
        try:
            outcomes.append(ledger.add(made_run(error)))
        except LedgerError as refused:
            outcomes.append(refused)

    threads = [threading.Thread(target=add, args=(error,)) for error in errors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_different_runs_added_at_once_one_stays(tmp_path: Path) -> None:
    outcomes = race(tmp_path, [float(error) for error in range(12)])
    assert sum(isinstance(outcome, Path) for outcome in outcomes) == 1
    assert len(Ledger(tmp_path).runs()) == 1
    assert len(os.listdir(tmp_path)) == 1


def test_the_same_run_may_be_added_at_once(tmp_path: Path) -> None:
    outcomes = race(tmp_path, [1.5] * 12)
    assert all(isinstance(outcome, Path) for outcome in outcomes)
    assert len(Ledger(tmp_path).runs()) == 1


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    ledger = Ledger(tmp_path)
    ledger.add(made_run(1.5))
    with pytest.raises(LedgerError, match="holds a different run"):
        ledger.add(made_run(1.6))
    assert [run.final.test_error for run in ledger.runs()] == [1.5]


def test_the_mean_over_seeds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for seed, error in enumerate((1.4, 1.5, 1.9)):
        ledger.add(made_run(error, seed=seed))
    assert ledger.mean(density=0.05) == mean_of([1.4, 1.5, 1.9])
    assert ledger.mean("accuracy", density=0.05) == mean_of([98.6, 98.5, 98.1])
    assert ledger.mean("specialisation", density=0.05) is None
    assert ledger.mean(density=0.01) is None
    with pytest.raises(ArgumentError, match="metric='tset error' is not known; did you mean 'test error'"):
        ledger.mean("tset error")


def test_a_mean_mixes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(made_run(seed=0))
    ledger.add(made_run(seed=1, recipe={"epochs": 10}, shortened=True))
    with pytest.raises(LedgerError, match="these 2 runs differ in recipe, shortened; filter by these fields"):
        ledger.mean()
    assert ledger.mean(shortened=True) == mean_of([1.5])


def test_a_copy_is_not_another_seed(tmp_path: Path) -> None:
    path = Ledger(tmp_path).add(made_run())
    (tmp_path / "copy.json").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(LedgerError, match="of the configuration and seed of"):
        Ledger(tmp_path).runs()


def test_whether_a_run_could_be_added(tmp_path: Path) -> None:
    Ledger(tmp_path / "new").check_writable()
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        Ledger(tmp_path / "file").check_writable()
