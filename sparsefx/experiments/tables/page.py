"""Everything that is regenerated from the ledger: the paper's tables and figures, and the page of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sparsefx.experiments.ledger.identity import canonical
from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.ledger.record import Run
from sparsefx.experiments.ledger.statistics import mean_of
from sparsefx.experiments.tables.cells import Measured
from sparsefx.experiments.tables.figures import histogram_figure, line_figure
from sparsefx.experiments.tables.groups import Group, Recipes, groups, label, usual_recipes
from sparsefx.experiments.tables.paper import figure_2, figure_3, tables
from sparsefx.experiments.tables.query import Query
from sparsefx.experiments.tables.table import markdown_table, mean_text, to_csv, to_markdown

BEGIN = "<!-- begin ledger -->"
END = "<!-- end ledger -->"

_INTRODUCTION = (
    "Generated from the results ledger alone. A cell has the mean over seeds ± its standard error, at the "
    "end of the last epoch, and below it what was published. Runs that differ in more than their seed are "
    "never averaged. Each kind of run has its own mean, labelled with what is different: a shortened recipe, "
    "the JPEG copy of CIFAR-10, a field of the recipe, the weights reached. Versions of code and torch are "
    "not told apart. Weights are counted among the maskable ones. Published values are those of Dettmers "
    "& Zettlemoyer (2019) unless another source is named; the CSV files name every source."
)


def write_tables(
    ledger_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], *, figures: bool = True
) -> list[Path]:
    """Write Tables 1 to 5, Figures 2 and 3 and what does better, as Markdown, CSV and PNG.

    Args:
        ledger_folder: the folder of finished runs; without any, all cells say 'not run'.
        out_folder: where to write; made if it is not there.
        figures: write the PNG files too, which needs matplotlib.

    Returns:
        The files written.

    Raises:
        LedgerError: a file of the ledger is damaged.
        MissingPackageError: matplotlib is not installed; the tables are written by then.
    """
    runs, out = Ledger(ledger_folder).runs(), Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for table in tables():
        for suffix, text in ((".md", to_markdown(table, runs) + "\n"), (".csv", to_csv(table, runs))):
            paths.append(out / f"{table.name}{suffix}")
            paths[-1].write_text(text, encoding="utf-8", newline="\n")
    if figures:
        paths.append(line_figure(figure_2(), runs, out / "figure2.png"))
        paths.append(histogram_figure(figure_3(), runs, out / "figure3.png"))
    return paths


def addresses(paths: Sequence[Path], page_folder: Path) -> list[str]:
    """The addresses of files in links of a page that lies in a folder."""
    return [Path(os.path.relpath(path, page_folder)).as_posix() for path in paths]


def results_page(ledger: Ledger, files: Sequence[str] = ()) -> str:
    """The section of the results' page that is the ledger's, between its comment markers.

    Args:
        ledger: the finished runs.
        files: addresses relative to the page, as of what :func:`write_tables` returns: the page shows the
            figures (PNG) and links to the tables (CSV).

    Raises:
        LedgerError: a file of the ledger is damaged.
    """
    runs = ledger.runs()
    parts = ["## The paper's tables", _INTRODUCTION]
    if sheets := [f"[{Path(file).stem}]({file})" for file in files if file.endswith(".csv")]:
        parts.append(f"As CSV files: {', '.join(sheets)}.")
    parts += [to_markdown(table, runs) for table in tables()]
    parts += [f"![{Path(file).stem}]({file})" for file in files if file.endswith(".png")]
    parts += [f"### All runs\n\n{_all_runs(runs)}", f"### Recipes\n\n{_recipes(usual_recipes(runs))}"]
    return "\n\n".join([BEGIN, *parts, END])


def replace_section(page: str, section: str) -> str:
    """Put a section from :func:`results_page` into a page, in the place of the former one or at the end."""
    before, _, rest = page.partition(BEGIN)
    parts = [before.strip("\n"), section, rest.partition(END)[2].strip("\n")]
    return "\n\n".join(filter(None, parts)) + "\n"


def _all_runs(runs: Sequence[Run]) -> str:
    if not runs:
        return "None."
    recipes = usual_recipes(runs)
    header = ["network", "data", "method", "options", "weights", "test error, %", "minutes a run", "on"]
    by_network = sorted(groups(runs), key=lambda group: (group[0].network, group[0].data, group[0].method))
    return markdown_table(header, [_run_row(group, recipes) for group in by_network])


def _run_row(group: Group, recipes: Recipes) -> list[str]:
    run = group[0]
    error = mean_of([run.final.test_error for run in group])
    minutes = sum(run.seconds for run in group) / len(group) / 60
    asked = Query(run.network, run.data, run.method, run.density, run.options)
    machines = sorted({f"{run.hardware}, torch {run.versions.get('torch', '?')}" for run in group})
    return [
        run.network,
        run.data,
        run.method,
        ", ".join(f"{name}={value}" for name, value in sorted(run.options.items())),
        f"{100 * run.density:g}%",
        mean_text(Measured(error, label(group, recipes, asked))),
        f"{minutes:.1f}",
        "; ".join(machines),
    ]


def _recipes(recipes: Recipes) -> str:
    lines = []
    for (network, data, shortened), recipe in sorted(recipes.items()):
        fields = ", ".join(f"{name}={canonical(value)}" for name, value in sorted(recipe.items()))
        lines.append(f"- {network} on {data}{', shortened' if shortened else ''}: {fields}")
    return "\n".join(lines) or "None."
