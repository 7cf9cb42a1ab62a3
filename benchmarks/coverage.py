"""How many public models export keeps exact, and how many it makes smaller.

    python benchmarks/coverage.py run --zoo torchvision --models 'resnet*' --patterns rows random
    python benchmarks/coverage.py table

Every model has random weights, random norms and scales where its constructor would leave 0 or 1, and
statistics near those of what it computes. Its weights are emptied by a pattern (``networks.empty``);
export must then compute the same in float64, also at another batch size and at another image size or
sequence length, if the model takes one. A model runs in a process of its own; results are appended to
records/coverage.jsonl, and what is there already is skipped. ``table`` writes docs/coverage.md from it.
Needs timm, transformers and diffusers (``pip install .[coverage]``).
"""

from __future__ import annotations

import argparse
import copy
import re
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import coverage_table
import networks
import torch
import workers
import zoo
from torch import Tensor, nn

import sparsefx

RESULTS = Path(__file__).parent / "records/coverage.jsonl"
EXACT = 1e-10
"""Relative difference in float64 up to which outputs are the same; beyond it, where the model itself is so
sensitive to rounding, up to what this many units in the last place of its weights change."""
UNITS = 30
_KEPT = re.compile(r"\S+ at \S+ keeps \d+ dead channels")


def main() -> None:
    """Run, or write the table."""
    options = _options()
    if options.command == "table":
        coverage_table.write(list(workers.read(options.results)))
    else:
        _run(options)


def _options() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--zoo", choices=list(zoo.ZOOS), help="default: all")
    parser.add_argument("--models", nargs="+", metavar="GLOB", help="names, or zoo/names; default: all")
    parser.add_argument("--patterns", nargs="+", choices=networks.PATTERNS, default=networks.PATTERNS)
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a model (default: %(default)s)")
    parser.add_argument("--memory", type=float, default=12, help="GiB a model (default: %(default)s)")
    parser.add_argument("--largest", type=float, default=150, help="million parameters, default %(default)s")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> None:
    done = set() if options.again else {(r["model"], r["pattern"]) for r in workers.read(options.results)}
    for case in zoo.find(options.zoo, options.models):
        patterns = [pattern for pattern in options.patterns if (case.key, pattern) not in done]
        if not patterns:
            continue
        arguments = (case.key, patterns, options.largest, options.results)
        limits = {"timeout": options.timeout, "gigabytes": options.memory}
        done_before = len(list(workers.read(options.results)))
        reason = workers.run(measure, arguments, **limits)
        records = list(workers.read(options.results))[done_before:]
        status = "timeout" if reason.startswith(workers.TOO_LONG) else "harness"
        missed = [
            {"model": case.key, "pattern": pattern, "status": status, "message": reason}
            for pattern in patterns[len(records) :]
        ]
        workers.append(options.results, missed)
        print(case.key, *(f"{r['pattern']}: {_summary(r)}" for r in records + missed), sep="  ", flush=True)


def _summary(record: workers.Record) -> str:
    detail = record.get("message", "") or ("" if record.get("shrinks") else "does not shrink")
    return f"{record['status']} {detail}"[:100].strip()


def measure(key: str, patterns: list[str], largest: float, results: Path) -> None:
    """Export one model by each pattern and append the records."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    case = zoo.get(key)
    model = case.build()
    parameters = networks.sizes(model)[0]
    if parameters > largest * 1e6:
        message = f"{parameters / 1e6:.0f} million parameters"
        record = {"model": key, "status": "too large", "message": message}
        workers.append(results, [{**record, "pattern": pattern} for pattern in patterns])
        return
    model = model.double().eval()
    networks.randomise(model)
    as_double = _computes_in_single(model, case)
    with networks.AsDouble() if as_double else nullcontext():
        for pattern in patterns:
            torch.manual_seed(1)
            emptied = copy.deepcopy(model)
            networks.empty(emptied, pattern)
            networks.calibrate(emptied, case.inputs(4, *case.size))
            known = {"model": key, "pattern": pattern, "as_double": as_double}
            workers.append(results, [known | _measure_pattern(emptied, case)])


def _computes_in_single(model: nn.Module, case: zoo.Case) -> bool:
    """Whether a model in float64 makes tensors in less, if it runs at all."""
    try:
        with networks.SinglePrecision() as seen:
            networks.outputs(copy.deepcopy(model), case.inputs(2, *case.size))
    except RuntimeError:
        return True
    return bool(seen.found)


def _measure_pattern(model: nn.Module, case: zoo.Case) -> workers.Record:
    inputs = case.inputs(2, *case.size)
    began = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compact = sparsefx.export(model, inputs)
    except Exception as error:  # export must not raise, whatever the model: this is what is measured
        return {"status": "error", "message": f"{type(error).__name__}: {error}"[:160]}
    seconds = time.perf_counter() - began
    whole = next((str(w.message) for w in caught if "returned whole" in str(w.message)), "")
    before, after = networks.sizes(model), networks.sizes(compact)
    report: Any = compact.report
    return {
        "seconds": round(seconds, 3),
        "message": whole[:160],
        "parameters": (before[0], after[0]),
        "weights": (before[1], after[1]),
        "shrinks": after[1] < before[1],
        "opaque": networks.opaque_weights(compact),
        "captured": report.captured,
        "detail": " | ".join(_KEPT.findall(" ".join(step.detail for step in report.passes)))[:600],
        **_compare(model, compact, case, inputs),
    }


def _compare(model: nn.Module, compact: nn.Module, case: zoo.Case, inputs: tuple[Any, ...]) -> workers.Record:
    """Status and differences at the example's size, with another batch, and at another size."""
    expected = networks.outputs(model, inputs)
    again = networks.outputs(model, inputs)
    record: workers.Record = {
        "differences": {},
        "repeatable": networks.difference(again, expected),
        "varies": networks.difference(networks.outputs(model, case.inputs(2, *case.size)), expected),
        "finite": all(bool(tensor.isfinite().all()) for tensor in expected),
    }
    others: dict[str, tuple[tuple[Any, ...], list[Tensor]] | None] = {"example": (inputs, expected)}
    for name, batch, candidates in (("batch", 3, [case.size]), ("size", 2, case.others)):
        others[name] = _first_accepted(model, case, batch, candidates)
    for name, other in others.items():
        if other is None:
            continue
        try:
            difference = networks.difference(networks.outputs(compact, other[0]), other[1])
        except Exception as error:
            message = f"{type(error).__name__} at another {name}: {error}"
            return {**record, "status": "WRONG", "message": message[:160]}
        record["differences"][name] = difference
        if difference > EXACT:
            record["rounding"] = networks.rounding(model, *other)
    worst = max(record["differences"].values())
    record["difference"] = worst
    if worst > max(EXACT, UNITS * record.get("rounding", 0)):
        return {**record, "status": "WRONG", "message": f"differs by {worst:.1e}"}
    return {**record, "status": "exact"}


def _first_accepted(
    model: nn.Module, case: zoo.Case, batch: int, candidates: Any
) -> tuple[tuple[Any, ...], list[Tensor]] | None:
    """Inputs of the first size that the model takes, with its outputs."""
    for size in candidates:
        inputs = case.inputs(batch, *size)
        try:
            return inputs, networks.outputs(model, inputs)
        except Exception:  # what a model raises at a size it does not take is its own affair
            continue
    return None


if __name__ == "__main__":
    main()
