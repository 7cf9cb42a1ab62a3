"""The tables of docs/kernels.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import contenders
from pages import table
from workers import Record


def sections(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Every table for which something was measured, by name, for processors with AVX-512 and for others."""
    for lanes, (kind, make) in itertools.product((16, 8), TABLES.items()):
        found = [record for record in records if (record["kind"], record["lanes"]) == (kind, lanes)]
        if found:
            section = kind if lanes == 16 else f"{kind}, {lanes} lanes"
            yield section, make(_in_order(found))


def _in_order(records: Sequence[Record]) -> list[Record]:
    """By model as they come, then by density, batch and threads."""
    models = list(dict.fromkeys(record["model"] for record in records))
    sizes = ("density", "batch", "threads")
    return sorted(records, key=lambda r: (models.index(r["model"]), *(r[name] for name in sizes)))


def of_networks(records: Sequence[Record]) -> str:
    """Networks by all contenders."""
    return _compared(records, {"model": lambda r: r["model"]})


def of_layers(records: Sequence[Record]) -> str:
    """Layers on their own."""
    return _compared(records, {"model": lambda r: r["model"], "layer": lambda r: r["layer"]})


def of_trained(records: Sequence[Record]) -> str:
    """Trained networks, with the paper's estimates."""
    extra = {
        "estimate, sparse convolution": lambda r: _times(r.get("sparse_estimate")),
        "estimate, dense convolution": lambda r: _times(r.get("dense_estimate")),
    }
    return _compared(records, {"model": lambda r: r["model"]}, extra)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def of_auto(records: Sequence[Record]) -> str:
    """The ratio for every model and density."""
    densities = sorted({record["density"] for record in records})
    models = list(dict.fromkeys(record["model"] for record in records))
    found = {(record["model"], record["density"]): record for record in records}
    rows = [[model, *(_auto(found.get((model, density))) for density in densities)] for model in models]
    return table(["model", *(f"{density:.0%}" for density in densities)], rows)


def _auto(record: Record | None) -> str:
    return f"{record['ratio']:.2f}x ({record['regions']})" if record else ""


def of_starts(records: Sequence[Record]) -> str:
    """Seconds before the first result."""
    columns = {"cold": "cold start, s", "warm": "warm start, s", "other": "another batch size, s"}
    rows = [
        [r["model"], f"{r['density']:.0%}", *(f"{r[name]:.2f}" if name in r else "" for name in columns)]
        for r in records
    ]
    return table(["model", "density", *columns.values()], rows)


Columns = dict[str, Callable[[Record], str]]


def _compared(records: Sequence[Record], first: Columns, last: Columns | None = None) -> str:
    """A row for each measurement: what was measured, milliseconds of each contender, the ratio."""
    names = [*contenders.TORCH, *contenders.OTHERS]
    columns: Columns = {
        **first,
        "density": lambda r: f"{r['density']:.0%}",
        "batch": lambda r: str(r["batch"]),
        "threads": lambda r: str(r["threads"]),
    }
    used = [name for name in names if any(name in record["ms"] for record in records)]
    columns |= {name: _milliseconds(name) for name in used}
    columns |= {
        "sparse, ms": lambda r: f"{r['ms']['sparse']:.2f}",
        "ratio": lambda r: f"**{r['ratio']:.1f}x**",
        **(last or {}),
    }
    rows = [[cell(record) for cell in columns.values()] for record in records]
    return table(list(columns), rows)


def _milliseconds(name: str) -> Callable[[Record], str]:
    return lambda record: f"{record['ms'][name]:.2f}" if name in record["ms"] else ""


TABLES = {
    "network": of_networks,
    "layer": of_layers,
    "auto": of_auto,
    "start": of_starts,
    "trained": of_trained,
}
