"""The tables of docs/training_speed.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pages import table
from workers import Record

from sparsefx.experiments.tables.published import TABLE_4

CONTENDERS = ("eager", "channels-last", "compile", "bfloat16")
"""The dense steps, as benchmarks/training.py calls them."""


def sections(records: list[Record]) -> Iterator[tuple[str, str]]:
    """Every table for which something was measured, by name."""
    for lanes in (16, 8):
        of_lanes = [one for one in records if one["lanes"] == lanes]
        for kind, make in TABLES.items():
            latest = {
                tuple(one[key] for key in ("model", "batch", "threads", "density")): one
                for one in of_lanes
                if one["kind"] == kind
            }
            if latest:
                yield f"training {kind}, {lanes} lanes", make(list(latest.values()))
        estimated = table_of_estimates(of_lanes)
        if estimated:
            yield f"training estimates, {lanes} lanes", estimated


def table_of_steps(records: list[Record]) -> str:
    """Milliseconds of every contender, in training or inference, and the ratio."""
    header = ["network", "batch", "threads", "density", *CONTENDERS, "sparse, ms", "ratio"]
    rows = [
        [
            *(str(one["model"]), str(one["batch"]), str(one["threads"]), f"{one['density']:.0%}"),
            *(f"{one[name]:.1f}" if one.get(name) else "" for name in CONTENDERS),
            *(f"{one['sparse']:.1f}", f"**{one['ratio']:.1f}x**"),
        ]
        for one in records
    ]
    return table(header, rows)


def table_of_memory(records: list[Record]) -> str:
    """Megabytes, and the part of the dense step's."""
    dense = {(one["model"], one["batch"]): one for one in records if one["density"] is None}
    rows = []
    for one in records:
        base = dense[one["model"], one["batch"]]
        kind = "dense" if one["density"] is None else f"{one['density']:.0%}"
        parts = [f"{one[name]:.0f} ({one[name] / base[name]:.2f})" for name in ("peak", "kept")]
        rows.append([one["model"], str(one["batch"]), kind, *parts])
    return table(["network", "batch", "density", "peak, MB", "weights, gradients and momentum, MB"], rows)


def table_of_cycles(records: list[Record]) -> str:
    """Milliseconds of each."""
    names = ("dense", "packed", "window", "cycle")
    header = ["network", "batch", "density", "dense step, ms", "sparse step", "step of the window", "cycle"]
    rows = [
        [one["model"], str(one["batch"]), f"{one['density']:.0%}", *(f"{one[name]:.1f}" for name in names)]
        for one in records
    ]
    return table(header, rows)


TABLES: dict[str, Callable[[list[Record]], str]] = {
    "steps": table_of_steps,
    "memory": table_of_memory,
    "cycles": table_of_cycles,
    "inference": table_of_steps,
}


def table_of_estimates(records: list[Record]) -> str:
    """The paper's Table 4 beside what was measured; empty where nothing was."""
    rows = []
    for model, (density, dense, sparse) in TABLE_4.items():
        found = {
            one["kind"]: one for one in records if (one["model"], one.get("density")) == (model, density)
        }
        measured = [
            f"**{found[kind]['ratio']:.1f}x** (batch {found[kind]['batch']})" if kind in found else ""
            for kind in ("steps", "inference")
        ]
        if any(measured):
            estimates = (f"{published.value:.2f}" for published in (dense, sparse))
            rows.append([model, f"{density:.0%}", *estimates, *measured])
    header = [
        "network",
        "weights",
        "estimate, dense conv.",
        "estimate, sparse conv.",
        "training step",
        "inference",
    ]
    return table(header, rows) if rows else ""
