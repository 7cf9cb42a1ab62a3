"""The folder of runs: what is added is found, nothing is lost or overwritten silently, damage is named."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_run

from sparsefx.errors import ArgumentError, LedgerError
from sparsefx.experiments.ledger import files
from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.ledger.record import EpochRow, Run
from sparsefx.experiments.ledger.statistics import mean_of


def visible(folder: Path) -> list[str]:
    """The names of the files that are not hidden, as the lock is."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def by_seed(folder: Path) -> list[Run]:
    return sorted(Ledger(folder).runs(), key=lambda run: run.seed)


def refuse_locks(_: object) -> None:
    raise OSError(errno.ENOLCK, "no locks here")


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
    assert visible(tmp_path) == [path.name]


def test_only_the_line_of_an_overwritten_run_changes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for seed in range(3):
        path = ledger.add(made_run(seed=seed))
    before = path.read_bytes().splitlines()
    ledger.add(made_run(1.6, seed=1), overwrite=True)
    after = path.read_bytes().splitlines()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert [run.final.test_error for run in ledger.runs(seed=1)] == [1.6]


def test_there_is_a_file_for_each_network_and_data_set(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for network, data in (("lenet-300-100", "mnist"), ("vgg16-d", "cifar10"), ("vgg16-d", "cifar10-jpeg")):
        for method in ("set", "rigl"):
            ledger.add(made_run(network=network, data=data, method=method))
    assert visible(tmp_path) == [
        "lenet-300-100_mnist.jsonl",
        "vgg16-d_cifar10-jpeg.jsonl",
        "vgg16-d_cifar10.jsonl",
    ]
    assert all(len(path.read_text().splitlines()) == 2 for path in tmp_path.glob("*.jsonl"))


def test_the_order_of_lines_makes_no_difference(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for seed in (2, 0, 1):
        path = ledger.add(made_run(seed=seed))
    expected = ledger.runs()
    assert [run.seed for run in expected] == [0, 1, 2]
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert ledger.runs() == expected


def test_a_network_is_found_in_any_spelling(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(made_run())
    ledger.add(made_run(network="Mine_2"))
    assert ledger.runs(network="lenet300-100") == ledger.runs(network="lenet-300-100") != []
    assert len(ledger.runs(network="Mine_2")) == 1
    assert ledger.runs(network="mine2") == []


def test_a_run_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"run.final.test_error is 120.0"):
        Ledger(tmp_path).add(made_run(120.0))
    assert visible(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff\xfe", b'{"schema": 1}'])
@pytest.mark.parametrize("name", ["lenet-300-100_mnist.jsonl", "run.json"])
def test_damage_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(made_run())
    with (tmp_path / name).open("ab") as file:
        file.write(content)
    place = f"{name}, line 2" if name.endswith("jsonl") else name
    with pytest.raises(
        LedgerError, match=rf"{place} is damaged: .*; restore it, or delete (the line|it) and run"
    ):
        ledger.runs()


def test_a_damaged_line_keeps_no_run_out_and_stays_as_it_is(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    path = ledger.add(made_run(seed=0))
    torn = path.read_bytes()[:100]
    with path.open("ab") as file:
        file.write(torn)  # a write that was cut short
    ledger.add(made_run(seed=1))
    ledger.add(made_run(1.9, seed=1), overwrite=True)
    lines = path.read_bytes().splitlines()
    assert (len(lines), lines[1]) == (3, torn)
    path.write_bytes(b"\n".join([lines[0], b"", lines[2]]))  # by an editor that ends no last line
    assert [run.final.test_error for run in ledger.runs()] == [1.5, 1.9]
    ledger.add(made_run(seed=2))
    assert len(ledger.runs()) == 3


def test_unfinished_files_are_not_runs(tmp_path: Path) -> None:
    for name in (".lenet.jsonl.new", "._lenet.jsonl", "._lenet.json"):
        (tmp_path / name).write_text("{")
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
    assert len(visible(tmp_path)) == 1


def test_the_same_run_may_be_added_at_once(tmp_path: Path) -> None:
    outcomes = race(tmp_path, [1.5] * 12)
    assert all(isinstance(outcome, Path) for outcome in outcomes)
    assert len(Ledger(tmp_path).runs()) == 1


def test_no_line_is_lost_where_many_threads_add(tmp_path: Path) -> None:
    def add(first: int) -> None:
        for seed in range(first, first + 5):
            Ledger(tmp_path).add(made_run(seed=seed))
            Ledger(tmp_path).add(made_run(1.6, seed=seed), overwrite=True)

    threads = [threading.Thread(target=add, args=(5 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(run.seed, run.final.test_error) for run in by_seed(tmp_path)] == [(n, 1.6) for n in range(20)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("locks", [True, False], ids=["", "no locks"])
def test_no_line_is_lost_where_many_processes_add(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(files, "_lock", refuse_locks)
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            status = 1
            try:
                for seed in range(8 * number, 8 * number + 8):
                    Ledger(tmp_path).add(made_run(seed=seed))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [run.seed for run in by_seed(tmp_path)] == list(range(32))


def test_a_disk_that_is_full_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    path = ledger.add(made_run())
    before = path.read_bytes()

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(bytes(content)[:50])

    with monkeypatch.context() as patches:
        patches.setattr(Path, "open", lambda path, mode, **_: Full(path, "ab+"))
        with pytest.raises(OSError, match="cannot be written whole"):
            files.append_line(path, made_run(seed=1).to_json())
    assert path.read_bytes() == before


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_lock", refuse_locks)
    ledger = Ledger(tmp_path)
    ledger.add(made_run(1.5))
    with pytest.raises(LedgerError, match="holds a different run"):
        ledger.add(made_run(1.6))
    assert [run.final.test_error for run in ledger.runs()] == [1.5]


def test_locks_that_fail_otherwise_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(files, "_lock", broken)
    with pytest.raises(OSError, match="broken disk"):
        Ledger(tmp_path).add(made_run())


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


@pytest.mark.parametrize("name", ["lenet-300-100_mnist.jsonl", "copy.jsonl", "copy.json"])
def test_a_copy_is_not_another_seed(tmp_path: Path, name: str) -> None:
    line = Ledger(tmp_path).add(made_run()).read_text()
    with (tmp_path / name).open("a") as file:
        file.write(line)
    with pytest.raises(LedgerError, match=r"is of the configuration and seed of .*; delete one of them"):
        Ledger(tmp_path).runs()


def test_whether_a_run_could_be_added(tmp_path: Path) -> None:
    Ledger(tmp_path / "new").check_writable()
    assert visible(tmp_path / "new") == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        Ledger(tmp_path / "file").check_writable()


def test_a_line_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    path = ledger.add(made_run())
    line = made_run(seed=1).to_json().encode()

    def finish() -> None:
        time.sleep(0.1)
        with path.open("ab") as file:
            file.write(line[50:] + b"\n")
        lock.__exit__(None, None, None)

    lock = files.locked(tmp_path)
    lock.__enter__()
    with path.open("ab") as file:
        file.write(line[:50])
    writer = threading.Thread(target=finish)
    writer.start()
    assert len(ledger.runs()) == 2
    writer.join()
