"""The command line: train a network by a method, regenerate tables from the ledger, list what there is.

sparsefx train --network lenet-300-100 --data mnist --root data --method sparse-momentum --density 0.05
sparsefx report tables --ledger results --out tables
sparsefx list methods
"""

from __future__ import annotations

import argparse
import ast
import inspect
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sparsefx._common.version import VERSION
from sparsefx.cycle import Timing
from sparsefx.errors import ArgumentError, SparseFxError
from sparsefx.experiments.ledger.convert import convert
from sparsefx.experiments.ledger.identity import run_name
from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.ledger.metrics import METRICS
from sparsefx.experiments.ledger.record import Run
from sparsefx.experiments.networks import NETWORKS, SETTINGS
from sparsefx.experiments.run.analyse import ANALYSES
from sparsefx.experiments.run.interrupt import Interrupt
from sparsefx.experiments.run.logs.choose import logs_for
from sparsefx.experiments.run.recipes.papers import RECIPES
from sparsefx.experiments.run.recipes.recipe import Recipe
from sparsefx.experiments.run.recipes.tuning import TUNING
from sparsefx.experiments.run.settings import Settings, settings
from sparsefx.experiments.run.train import Experiment
from sparsefx.experiments.tables.page import addresses, replace_section, results_page, write_tables
from sparsefx.methods import METHODS, Method, Rounds
from sparsefx.methods.options import PARTS
from sparsefx.report.export_report import ExportReport

_DIVERGED = 1
_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
_NOT_OPTIONS = ("data", "normalisation", "source")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = command_line().parse_args(arguments)
    try:
        status: int = options.command(options)
    except (SparseFxError, OSError) as error:
        print(f"sparsefx: {error}", file=sys.stderr)
        return 2
    return status


def command_line() -> argparse.ArgumentParser:
    """What may be given, and which function takes it: ``options.command(options)``."""
    parser = argparse.ArgumentParser(
        "sparsefx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=versions())
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_train(commands.add_parser("train", help="train a network by a method"))
    _add_report(commands.add_parser("report", help="regenerate tables and figures from the ledger"))
    _add_convert(commands.add_parser("convert", help="bring a ledger of the older format to this one"))
    known = commands.add_parser("list", help="list networks, methods or recipes")
    known.add_argument("what", choices=["networks", "methods", "options", "recipes", "settings"])
    known.set_defaults(command=_list)
    return parser


def versions() -> str:
    """What a bug report names: sparsefx, what it computes with, Python, and the system."""
    packages = f"torch {torch.__version__}, numpy {np.__version__}"
    return f"sparsefx {VERSION} ({packages}, Python {platform.python_version()}, {platform.platform()})"


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--network", "--model", required=True, help="sparsefx list networks")
    add("--data", default="", help="mnist, cifar10 or imagenet; by default the recipe's")
    add("--root", required=True, help="the folder that holds the data")
    add("--method", default="sparse-momentum", help="sparsefx list methods; default: %(default)s")
    add(
        "--density",
        type=float,
        help="fraction of the maskable weights, in (0, 1]; default: the method's, 0.1",
    )
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--recipe", default="", help="sparsefx list recipes; by default the data set's own")
    add(
        "--option",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="of the method: sparsefx list options",
    )
    add(
        "--setting",
        default="",
        help="which layers stay dense: sparsefx list settings; default: the network's",
    )
    add("--device", default="cpu", help="default: %(default)s")
    add("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    add("--channels-last", action="store_true", help="keep images in that memory format")
    add("--compile", action="store_true", help="run the model through torch.compile")
    add(
        "--kernels",
        default="dense",
        choices=["dense", "auto", "sparse"],
        help="what trains the layers: torch's kernels, the faster ones, or sparse ones; default: %(default)s",
    )
    add("--runs", type=Path, default=Path("runs"), help="folder for checkpoints; default: %(default)s")
    add("--results", type=Path, default=Path("results"), help="the ledger; default: %(default)s")
    add("--minutes", type=float, default=10, help="between checkpoints; default: %(default)s")
    add("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    add("--again", action="store_true", help="run it although it is in the ledger, and replace it there")
    add("--export", action="store_true", help="also write the exported network, compact.safetensors")
    add("--tensorboard", action="store_true", help="write for TensorBoard, too")
    add("--analyse", nargs="+", default=[], choices=list(ANALYSES), help="measure on the trained network")
    fields = parser.add_argument_group(
        "the recipe's fields",
        "by default as in the recipe; fewer epochs bring milestones forward in proportion",
    )
    for name, text in documented(Recipe).items():
        if name not in _NOT_OPTIONS:
            flag = f"--{name.replace('_', '-')}"
            fields.add_argument(
                flag, type=_value, dest=f"recipe_{name}", metavar="VALUE", help=text.replace("%", "%%")
            )
    parser.set_defaults(command=_train)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["tables"])
    parser.add_argument("--ledger", type=Path, default=Path("results"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("tables"), help="default: %(default)s")
    parser.add_argument("--page", type=Path, help="a Markdown page whose marked section to replace")
    parser.set_defaults(command=_report)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", type=Path, default=Path("results"), help="default: %(default)s")
    parser.set_defaults(command=_convert)


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Take numbers below 1e-38 for 0, as the momentum of dead neurons becomes: slow on CPUs.

    Threads that torch has started before keep the setting that they began with, so this is for the start of a
    command, before any work on tensors.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_flushed_denormals()
def _train(options: argparse.Namespace) -> int:
    wanted = _settings(options)
    if not options.minutes >= 0:
        raise ArgumentError(f"--minutes {options.minutes} is not a time between checkpoints; pass 0 or more")
    experiment = Experiment(wanted)
    for analysis in options.analyse:
        ANALYSES[analysis].check(experiment.setup)
    ledger, folder = Ledger(options.results), options.runs / run_name(experiment.configuration)
    ledger.check_writable()
    present = ledger.find(experiment.configuration)
    if present is not None and not options.again:
        error = present.run().final.test_error
        print(f"{present.place} is there already, test error {error:.2f}%; --again runs it once more")
        return 0
    if options.resume and experiment.resume(folder):
        print(f"goes on after {experiment.progress}", file=sys.stderr)
    elif (folder / "checkpoint.pt").exists():
        raise ArgumentError(
            f"{folder} holds a checkpoint of this run: --resume goes on, or delete the folder"
        )
    run = _run(experiment, folder, options)
    if run is None:
        return _INTERRUPTED
    compact = experiment.keep_model(folder, export=options.export and not experiment.diverged)
    path = ledger.add(run, overwrite=options.again)
    experiment.forget(folder)
    if experiment.diverged:
        print(_diverged(experiment, path), file=sys.stderr)
        return _DIVERGED
    print(f"test error {run.final.test_error:.2f}% at density {run.final.density:.4f}: {path}")
    for title, metric in METRICS.items():
        if metric.path.startswith("analyses.") and (value := metric(run)) is not None:
            print(f"{title}: {value:.4g}")
    if compact is not None:
        report = cast(ExportReport, compact.report)
        print(
            f"exported: {report.parameters_after:,} of {report.parameters_before:,} parameters, in {folder}"
        )
    return 0


def _run(experiment: Experiment, folder: Path, options: argparse.Namespace) -> Run | None:
    """Train, and tell of it; None if interrupted."""
    name = experiment.settings.method.name
    tuned = {**TUNING.get(name, {}), **experiment.settings.tuned}
    if tuned:
        print(f"as {name} is trained in its paper: {tuned}", file=sys.stderr)
    log = logs_for(folder, experiment.rows, tensorboard=options.tensorboard)
    with Interrupt() as interrupt:
        run = experiment.run(
            folder,
            log=log,
            interrupt=interrupt,
            checkpoint_seconds=60 * options.minutes,
            analyses=options.analyse,
        )
    log.close()
    if run is None:
        stopped = f"stopped after {experiment.progress}; the same command with --resume goes on"
        print(stopped, file=sys.stderr)
    return run


def _diverged(experiment: Experiment, path: Path) -> str:
    recipe = experiment.settings.recipe
    epochs = max(1.0, 2 * recipe.warmup_epochs, round(recipe.epochs / 20))
    return (
        f"the training diverged: the loss is not finite after {experiment.progress}, so it has stopped "
        f"({path}). Warm the learning rate up, --warmup-epochs {epochs:g}; or lower it, --lr "
        f"{recipe.lr / 10:g}; or let cycles move less, --prune-rate {recipe.prune_rate / 2:g}; or take "
        "another --seed"
    )


def _settings(options: argparse.Namespace) -> Settings:
    found = {name: value for name, value in vars(options).items() if name.startswith("recipe_")}
    changes = {name.removeprefix("recipe_"): value for name, value in found.items() if value is not None}
    if isinstance(changes.get("milestones"), (int, float)):
        changes["milestones"] = (changes["milestones"],)
    return settings(
        options.network,
        options.root,
        data=options.data,
        method_name=options.method,
        density=options.density,
        seed=options.seed,
        recipe_name=options.recipe,
        options=dict(map(_assignment, options.option)),
        changes=changes,
        setting=options.setting,
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
        compile=options.compile,
        kernels=options.kernels,
    )


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(f"--option {text!r} is not of the form FIELD=VALUE")
    return name, _value(value)


def _value(text: str) -> Any:
    """A number, tuple, True, False or None, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _report(options: argparse.Namespace) -> int:
    if not options.ledger.is_dir():
        raise ArgumentError(f"--ledger {options.ledger} is no folder; sparsefx train makes one")
    paths = write_tables(options.ledger, options.out)
    print(*paths, sep="\n")
    if options.page is not None:
        section = results_page(Ledger(options.ledger), addresses(paths, options.page.parent))
        page = replace_section(options.page.read_text("utf-8"), section)
        options.page.write_text(page, "utf-8")
        print(options.page)
    return 0


def _convert(options: argparse.Namespace) -> int:
    print(*convert(options.ledger), sep="\n")
    return 0


def documented(kind: type) -> dict[str, str]:
    """What the docstring of a class says of each of its fields.

    Example:
        >>> documented(Timing)["first"]
        'fraction of training before which there is none, in [0, 1].'
    """
    text = re.sub(r"(?::\w+:)?`+~?([^`]+)`+", r"\1", inspect.getdoc(kind) or "")  # for a terminal
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(what.split()) for name, what in entries}


def documented_options() -> dict[str, str]:
    """What the docstrings say of the options of a method, those of a timing and of rounds included."""
    found: dict[str, str] = {}
    for kind in (Method, *PARTS.values(), Timing, Rounds):
        found = {**found, **{name: text for name, text in documented(kind).items() if name not in found}}
    return {name: text for name, text in found.items() if name not in PARTS}


def _list(options: argparse.Namespace) -> int:
    rows = {
        "networks": {name: f"input {found.input_shape}" for name, found in NETWORKS.items()},
        "methods": {name: f"{row.tier:8}  {row.source}" for name, row in METHODS.items()},
        "options": documented_options(),
        "recipes": {name: found.source for name, found in RECIPES.items()},
        "settings": SETTINGS,
    }[options.what]
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:{width}}  {text}")
    return 0
