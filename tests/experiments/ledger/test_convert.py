"""A ledger of the older format: it is read, added to, and converted without losing a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import made_run

from sparsefx.cli import main
from sparsefx.errors import ArgumentError, LedgerError
from sparsefx.experiments.ledger.convert import convert
from sparsefx.experiments.ledger.identity import run_name
from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.ledger.record import Run

RUNS = [
    *(made_run(1.5 + seed / 10, seed=seed) for seed in range(3)),
    made_run(method="set", options={"grow": "random"}, analyses={"notes": [1, None, "ä"]}),
    made_run(7.5, network="vgg16-d", data="cifar10-jpeg"),
]


def write_old(folder: Path, run: Run) -> Path:
    """As the older versions did: an entry a line, in a file of the run's own."""
    plain = json.loads(run.to_json())
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in plain.items())
    path = folder / f"{run_name(run.configuration)}.json"
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    for run in RUNS:
        write_old(tmp_path, run)
    return tmp_path


def by_name(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run_name(run.configuration))


def test_the_older_format_is_read(old: Path) -> None:
    assert Ledger(old).runs() == by_name(RUNS)


def test_a_run_in_the_older_format_is_there_already(old: Path) -> None:
    ledger = Ledger(old)
    path = ledger.add(RUNS[0])
    assert path.suffix == ".json"
    with pytest.raises(LedgerError, match=r"_0_.*\.json holds a different run"):
        ledger.add(made_run(9.0))
    assert ledger.add(made_run(9.0), overwrite=True).suffix == ".jsonl"
    assert not path.exists()
    ledger.add(made_run(seed=7))
    assert len(ledger.runs()) == len(RUNS) + 1
    changed = ledger.runs(seed=0, method="sparse-momentum", data="mnist")
    assert [run.final.test_error for run in changed] == [9.0]


def test_the_command_converts(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--ledger", str(old)]) == 0
    names = ["lenet-300-100_mnist.jsonl", "vgg16-d_cifar10-jpeg.jsonl"]
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == names
    assert sorted(path.name for path in old.iterdir()) == [".lock", *names]
    assert Ledger(old).runs() == by_name(RUNS)
    assert main(["convert", "--ledger", str(old / "nowhere")]) == 2
    assert "nowhere' is no folder" in capsys.readouterr().err


def test_a_conversion_that_was_interrupted_is_completed(old: Path) -> None:
    lines = Ledger(old / "new")
    lines.add(RUNS[1])
    lines.add(made_run(seed=9))
    (old / "new" / "lenet-300-100_mnist.jsonl").rename(old / "lenet-300-100_mnist.jsonl")
    convert(old)
    assert convert(old) == []
    assert Ledger(old).runs() == by_name([*RUNS, made_run(seed=9)])


@pytest.mark.parametrize("wrong", ["damaged", "different", "damaged line"])
def test_a_conversion_that_cannot_be_changes_nothing(old: Path, wrong: str) -> None:
    if wrong == "damaged":
        (old / "zebra.json").write_text("{")
    elif wrong == "different":
        write_old(old, made_run(9.0)).rename(old / "copy.json")
        write_old(old, RUNS[0])
    else:
        (old / "lenet-300-100_mnist.jsonl").write_text("{")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    with pytest.raises(LedgerError, match=r"is damaged|are different runs of one configuration and seed"):
        convert(old)
    assert {path.name: path.read_bytes() for path in old.iterdir() if path.name != ".lock"} == before


def test_a_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is no folder; give the one that holds the runs"):
        convert(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
