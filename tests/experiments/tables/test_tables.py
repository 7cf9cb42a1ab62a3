"""Tables from made ledgers, against the Markdown and CSV that they must give."""

from __future__ import annotations

import csv
import importlib
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_run

import sparsefx
from sparsefx.errors import LedgerError, MissingPackageError
from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.ledger.metrics import METRICS
from sparsefx.experiments.ledger.record import Run
from sparsefx.experiments.ledger.statistics import Mean
from sparsefx.experiments.run.settings import settings
from sparsefx.experiments.tables import published
from sparsefx.experiments.tables.cells import Cell, measure
from sparsefx.experiments.tables.groups import groups, usual_recipes
from sparsefx.experiments.tables.page import BEGIN, END, replace_section, results_page, write_tables
from sparsefx.experiments.tables.paper import ABLATIONS, METHODS, NETWORKS, table_1, table_5, tables
from sparsefx.experiments.tables.published import Published
from sparsefx.experiments.tables.query import Query
from sparsefx.experiments.tables.table import Table, to_csv, to_markdown

LENET = Query("lenet-300-100", "mnist", "sparse-momentum", 0.05)
VGG = Query("vgg16-d", "cifar10", "sparse-momentum", 0.05)


def small_table() -> Table:
    """Two rows: one whose cells are published in several ways, one that asks for less."""
    first = (
        Cell(LENET, published=(Published(1.53, 0.02),)),
        Cell(VGG, published=(Published(6.49, 0.045), Published(6.69, 0.049, by="later", confirmed=False))),
    )
    second = (Cell(LENET, "accuracy"), None)
    return Table(
        "small", "A small table", "what", ("MNIST", "CIFAR"), (("error", first), ("accuracy", second))
    )


def made_runs() -> list[Run]:
    jpeg: dict[str, Any] = {"network": "vgg16-d", "data": "cifar10-jpeg"}
    return [
        *(made_run(error, seed=seed) for seed, error in enumerate((1.4, 1.5, 1.9))),
        made_run(1.2, seed=0, recipe={"epochs": 200, "learning_rate": 0.1}),
        made_run(9.9, options={"grow": "random"}),
        made_run(9.9, density=0.02),
        made_run(7.0, **jpeg),
        made_run(7.2, **jpeg, seed=1),
        made_run(8.5, **jpeg, shortened=True, recipe={"epochs": 20}),
    ]


GOLDEN = """\
### A small table

| what | MNIST | CIFAR |
| --- | --- | --- |
| error | 1.60 ± 0.153 (3 seeds)<br>1.20 (1 seed, epochs=200)<br>paper: 1.53 ± 0.02 | \
7.10 ± 0.100 (2 seeds, JPEG copy of CIFAR-10)<br>8.50 (1 seed, JPEG copy of CIFAR-10, shortened)<br>\
paper: 6.49 ± 0.045<br>later: 6.69 ± 0.049 † |
| accuracy | 98.40 ± 0.153 (3 seeds)<br>98.80 (1 seed, epochs=200) |  |

† published value not checked against its source."""


def test_markdown() -> None:
    assert to_markdown(small_table(), made_runs()) == GOLDEN


def test_what_was_not_run_says_so() -> None:
    assert to_markdown(small_table(), []).splitlines()[4:6] == [
        "| error | not run<br>paper: 1.53 ± 0.02 | not run<br>paper: 6.49 ± 0.045<br>later: 6.69 ± 0.049 † |",
        "| accuracy | not run |  |",
    ]


def test_csv() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(small_table(), made_runs()))))
    ours = [line for line in lines if line["source"] == "ledger" and line["row"] == "error"]
    assert [(line["column"], line["label"], line["seeds"], line["mean"]) for line in ours] == [
        ("MNIST", "", "3", "1.6"),
        ("MNIST", "epochs=200", "1", "1.2"),
        ("CIFAR", "JPEG copy of CIFAR-10", "2", "7.1"),
        ("CIFAR", "JPEG copy of CIFAR-10, shortened", "1", "8.5"),
    ]
    assert (ours[0]["standard_error"], ours[1]["standard_error"]) == ("0.152753", "")
    assert (ours[0]["low_95"], ours[0]["high_95"]) == ("1.30061", "1.89939")
    theirs = [line for line in lines if line["source"] != "ledger"]
    assert [(line["source"], line["mean"], line["standard_error"]) for line in theirs] == [
        (published.PAPER, "1.53", "0.02"),
        (published.PAPER, "6.49", "0.045"),
        (published.PAPER, "6.69", "0.049"),
    ]
    assert [line["remark"].startswith("†") for line in theirs] == [False, False, True]


def test_csv_of_what_was_not_run() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(small_table(), []))))
    assert [(line["label"], line["seeds"], line["mean"]) for line in lines if line["source"] == "ledger"] == [
        ("not run", "0", "")
    ] * 3


def test_runs_of_different_configurations_are_never_one_mean() -> None:
    found = groups(made_runs())
    assert [len(group) for group in found] == [3, 1, 1, 1, 2, 1]
    assert [group[0].shortened for group in found] == [False] * 5 + [True]
    for group in found:
        assert len({run.seed for run in group}) == len(group)


def test_the_density_reached_is_said_where_it_is_another() -> None:
    query = Query("lenet-300-100", "mnist", "variational-dropout", 0.015, any_density=True)
    runs = [
        made_run(1.9, method="variational-dropout", density=1.0, reached=0.0151),
        made_run(1.8, method="variational-dropout", density=1.0, reached=0.0213, recipe={"epochs": 9}),
    ]
    labels = [found.label for found in measure(Cell(query), runs, usual_recipes(runs))]
    assert labels == ["", "epochs=9, learning_rate=None, 2.13% of the weights"]


def test_what_a_paper_sets_for_its_network_is_in_the_label() -> None:
    query = Query("lenet-300-100", "mnist", "deep-r", 0.05)
    usual = made_run(method="set").recipe
    run = made_run(1.9, method="deep-r", recipe={**usual, "tuned": {"distribution": "'erk'"}})
    recipes = usual_recipes([*(made_run(method="set", seed=seed) for seed in range(3)), run])
    assert [found.label for found in measure(Cell(query), [run], recipes)] == ["distribution='erk'"]


def test_runs_with_options_are_found_where_they_are_wanted_after_the_plain_ones() -> None:
    plain, options = made_run(1.9, method="snip"), {"score_batches": 2}
    runs = [made_run(error, method="snip", seed=seed, options=options) for seed, error in enumerate((1, 2))]
    for any_options, labels in ((False, [""]), (True, ["", "score_batches=2"])):
        query = Query("lenet-300-100", "mnist", "snip", 0.05, any_options=any_options)
        found = measure(Cell(query), [*runs, plain], usual_recipes(runs))
        assert [measured.label for measured in found] == labels
    assert found[1].mean.value == pytest.approx(1.5)


def test_table_1_has_the_tuned_runs_of_other_methods() -> None:
    made: dict[str, Any] = {"network": "lenet-300-100", "density": 0.01}
    runs = [
        made_run(3.9, method="learning-compression", **made),
        made_run(1.9, method="learning-compression", options={"growth": 1.2}, **made),
        made_run(2.4, method="sparse-momentum", options={"grow": "random"}, **made),
    ]
    lines = {line.split(" | ")[0].strip("| "): line for line in to_markdown(table_1(), runs).splitlines()}
    assert "3.90 (1 seed)<br>1.90 (1 seed, growth=1.2)" in lines["learning-compression, 1%"]
    assert "2.40" not in lines["sparse momentum, 1%"]


def test_a_difference_is_to_the_same_recipe_and_data() -> None:
    cell = Cell(Query("lenet-300-100", "mnist", "sparse-momentum", 0.05, {"grow": "random"}), baseline=LENET)
    random: dict[str, Any] = {"options": {"grow": "random"}}
    runs = [
        *(made_run(error, seed=seed) for seed, error in enumerate((1.0, 1.6))),
        *(made_run(error, seed=seed, **random) for seed, error in enumerate((1.5, 2.3))),
        made_run(5.0, recipe={"epochs": 1}, shortened=True),
    ]
    (found,) = measure(cell, runs, usual_recipes(runs))
    assert found.mean.value == pytest.approx(0.6)
    assert found.mean.standard_error == pytest.approx(0.5)
    orphan = [made_run(5.0, **random, shortened=True), *runs[:2]]
    assert measure(cell, orphan, usual_recipes(orphan)) == []


def test_table_5() -> None:
    runs = [
        *(made_run(error, seed=seed) for seed, error in enumerate((1.5, 1.6))),
        *(
            made_run(error, seed=seed, options={"redistribute": "none", "grow": "random"})
            for seed, error in enumerate((1.5, 1.9))
        ),
    ]
    lines = to_markdown(table_5(), runs).splitlines()
    whole, neither = lines[4], lines[7]
    assert whole.startswith(
        "| momentum, momentum | not run<br>paper: 6.49 ± 0.045 | 1.55 ± 0.050 (2 seeds)<br>"
    )
    assert neither.split(" | ")[2] == "+0.15 ± 0.206 (2 seeds)<br>paper: +0.11 ± 0.02"


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.name)
def test_an_empty_ledger_fills_every_cell(table: Table) -> None:
    lines = to_markdown(table, []).splitlines()
    assert lines[0] == f"### {table.title}"
    assert len(table.rows) >= 3
    for row, line in zip(table.rows, lines[4:], strict=False):
        asked = [cell for cell in row[1] if cell]
        assert line.startswith(f"| {row[0]} |")
        assert line.count("not run") == len(asked)
        assert len(row[1]) == len(table.columns)


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.name)
def test_every_query_can_be_met(table: Table) -> None:
    speedup = {"dense_by_time": 1.1, "sparse_by_time": 1.2, "dense_by_flops": 1.3, "sparse_by_flops": 1.4}
    analyses = {
        "speedup": {"weights": speedup, "activations": speedup},
        "specialisation": {"mean": 0.3},
        "top5_error": 9.0,
    }
    found: dict[str, Run] = {}
    for _, _, cell in table.cells():
        for query in filter(None, (cell.query, cell.baseline)):
            assert query.network in NETWORKS
            assert query.method in METHODS
            run = made_run(
                network=query.network,
                data=query.data,
                method=query.method,
                density=query.density,
                options=dict(query.options),
                analyses=analyses,
            )
            found[str(run.configuration)] = run
    assert "not run" not in to_markdown(table, list(found.values()))


def test_ablations_have_the_names_of_the_cycle() -> None:
    from sparsefx.cycle import GROW, REDISTRIBUTE

    for options in ABLATIONS.values():
        assert options.get("grow", "momentum") in GROW
        assert options.get("redistribute", "momentum") in REDISTRIBUTE
    assert ABLATIONS.keys() == published.TABLE_5.keys()


def test_published_numbers_are_where_they_belong() -> None:
    by_place = {
        (table.name, row, column): [(n.value, n.standard_error, n.confirmed) for n in cell.published]
        for table in tables()
        for row, column, cell in table.cells()
    }
    assert by_place["table1", "sparse momentum, 5%", "LeNet 300-100"] == [(1.53, 0.02, True)]
    assert by_place["table1", "sparse momentum, 0.4%", "LeNet-5 Caffe"] == [(1.403, 0.088, True)]
    assert by_place["table1", "SNIP, 2%", "LeNet-5 Caffe"] == [(0.8, None, True)]
    assert by_place["table2", "WRN-16-10, 5%", "sparse momentum"] == [
        (4.59, 0.043, True),
        (5.24, 0.052, False),
    ]
    assert by_place["table2", "VGG16-like, 3%", "SNIP"] == [(8.0, None, True)]
    assert by_place["table3", "sparse momentum, 20%", "top-1"] == [(74.9, None, True), (74.2, None, True)]
    assert by_place["table3", "DSR, 10%", "top-5"] == [(90.5, None, True)]
    assert by_place["table4", "WRN-16-10, 5%", "sparse conv., run time"] == [(11.85, None, True)]
    assert by_place["table5", "none, momentum", "LeNet-5 Caffe"] == [(0.32, 0.071, True)]
    assert by_place["figure2-left", "DEEP-R", "3%"] == [(98.22, None, True)]
    assert by_place["figure2-left", "static sparse", "1%"] == [(49.5, 2.6, True)]
    assert by_place["figure2-right", "SET", "50%"] == [(94.76, 0.04, True)]


def test_unconfirmed_numbers_are_the_second_versions() -> None:
    numbers = [number for table in tables() for _, _, cell in table.cells() for number in cell.published]
    assert {number.source for number in numbers if not number.confirmed} == {published.LATER}
    assert sum(not number.confirmed for number in numbers) == 8


def test_metrics_lead_into_a_run() -> None:
    run = made_run(1.5)
    assert METRICS["accuracy"](run) == 98.5
    assert METRICS["validation error"](run) == 2.0
    assert METRICS["sparse convolution"](run) is None


def fill(folder: Path) -> Ledger:
    ledger = Ledger(folder)
    specialisation = {
        "mean": 0.25,
        "edges": [0.1, 0.5, 1.0],
        "layers": [{"counts": [3, 1]}, {"counts": [1, 3]}],
    }
    for run in made_runs():
        ledger.add(run)
    dense = {"method": "dense", "density": 1.0}
    ledger.add(made_run(1.3, **dense))
    ledger.add(
        made_run(6.0, **dense, network="vgg16-d", data="cifar10", analyses={"specialisation": specialisation})
    )
    return ledger


def test_everything_is_written_from_the_folder_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fill(tmp_path / "ledger")
    paths = write_tables(tmp_path / "ledger", tmp_path / "out")
    names = [table.name for table in tables()]
    expected = {f"{name}{suffix}" for name in names for suffix in (".md", ".csv")} | {
        "figure2.png",
        "figure3.png",
    }
    assert {path.name for path in paths} == expected == {path.name for path in (tmp_path / "out").iterdir()}
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG" if path.suffix == ".png" else (b"### ", b"table,"))
    assert "1.60 ± 0.153 (3 seeds)" in (tmp_path / "out" / "table1.md").read_text(encoding="utf-8")


def test_without_matplotlib_the_tables_are_written_and_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"figures need matplotlib, .* pip install matplotlib"):
        write_tables(tmp_path / "ledger", tmp_path / "out")
    assert (tmp_path / "out" / "figure3.csv").exists()
    assert len(write_tables(tmp_path / "ledger", tmp_path / "out", figures=False)) == 2 * len(tables())


def test_matplotlib_is_not_imported_before_it_is_needed() -> None:
    before = set(sys.modules)
    importlib.reload(importlib.import_module("sparsefx.experiments.tables.figures"))
    assert not any(name.startswith("matplotlib") for name in set(sys.modules) - before)


def test_a_damaged_ledger_gives_no_tables(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(LedgerError, match=r"run.json is damaged"):
        write_tables(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page(tmp_path: Path) -> None:
    page = results_page(fill(tmp_path), ["t/table1.md", "t/table1.csv", "figures/figure2.png"])
    assert page.startswith(f"{BEGIN}\n\n## ")
    assert page.endswith(f"\n\n{END}")
    for table in tables():
        assert f"\n### {table.title}\n" in page
    assert "![figure2](figures/figure2.png)" in page
    assert "As CSV files: [table1](t/table1.csv)." in page
    assert "table1.md" not in page
    assert (
        "| lenet-300-100 | mnist | sparse-momentum | grow=random | 5% | 9.90 (1 seed) | 2.0 | "
        "2 cores, torch 2.6.0 |"
    ) in page
    assert "- lenet-300-100 on mnist: epochs=100, learning_rate=0.1" in page
    assert "- vgg16-d on cifar10-jpeg, shortened: epochs=20" in page


def test_the_page_of_an_empty_ledger(tmp_path: Path) -> None:
    page = results_page(Ledger(tmp_path))
    assert "### All runs\n\nNone." in page
    assert "seed)" not in page


def test_a_section_is_replaced_in_its_page() -> None:
    one, other = f"{BEGIN}\n\none\n\n{END}", f"{BEGIN}\n\nother\n\n{END}"
    first = replace_section("# Results\n\nText.\n", one)
    assert first == f"# Results\n\nText.\n\n{one}\n"
    between = f"# Results\n\n{one}\n\nAfter.\n"
    assert replace_section(between, other) == f"# Results\n\n{other}\n\nAfter.\n"
    assert replace_section(replace_section(first, other), other) == first.replace("one", "other")
    assert replace_section("", one) == f"{one}\n"


def test_mean_type_of_a_single_run() -> None:
    (found,) = measure(Cell(LENET), [made_run(1.5)], {})
    assert found.mean == Mean(1, 1.5, None)


def test_a_run_that_learnt_nothing_hides_no_other() -> None:
    query = Query("lenet-300-100", "mnist", "sparse-momentum", 0.05)
    learnt = [made_run(1.0, seed=0), made_run(2.0, seed=1)]
    for loss in (None, 2.3031):
        dead = made_run(88.65, seed=2)
        dead = replace(dead, final=replace(dead.final, train_loss=loss))
        found = measure(Cell(query), [dead, *learnt], usual_recipes(learnt))
        assert [(each.mean.n, each.mean.value, each.label) for each in found] == [
            (2, 1.5, ""),
            (1, 88.65, "learnt nothing"),
        ]
        random = made_run(1.6, options={"grow": "random"})
        change = Cell(replace(query, options={"grow": "random"}), baseline=query)
        (difference,) = measure(change, [dead, *learnt, random], usual_recipes(learnt))
        assert difference.mean.value == pytest.approx(0.1)


def test_runs_are_labelled_against_the_published_recipe_not_the_majority() -> None:
    published = settings("lenet-300-100", "data", data="mnist").configuration("mnist")["recipe"]
    half = {**published, "precision": "bfloat16"}
    runs = [made_run(1.5, recipe=published), *(made_run(1.6, seed=seed, recipe=half) for seed in range(3))]
    found = measure(Cell(Query("lenet-300-100", "mnist", "sparse-momentum", 0.05)), runs, usual_recipes(runs))
    assert {one.label: one.mean.n for one in found} == {"": 1, "precision=bfloat16": 3}


ROOT = Path(__file__).parents[3]


def test_methods_measured_against_their_paper_are_named_so() -> None:
    runs = [run for run in Ledger(ROOT / "results").runs() if not run.shortened]
    measured = {
        cell.query.method
        for table in tables()
        for _, _, cell in table.cells()
        if cell.published and any(map(cell.query, runs))
    } - {"granet"}  # stands beside the figures of sparse momentum
    assert measured == {name for name, row in sparsefx.METHODS.items() if row.tier == "measured"}
