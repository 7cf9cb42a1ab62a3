"""The page docs/coverage.md: what the benchmarks of public models found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import networks
import zoo
from pages import table, write_section
from workers import Record

SHRINKING = ("rows", "random")
"""The patterns that every model should lose weights by."""

Models = dict[str, dict[str, Record]]
"""Zoo/name to pattern to its latest record."""


def write(records: list[Record]) -> None:
    """Write the section on coverage."""
    models = latest(records)
    parts = [_summary(models)]
    for name in zoo.ZOOS:
        if chosen := {key: found for key, found in models.items() if key.startswith(f"{name}/")}:
            parts.append(f"### {name}\n\n{_table(chosen)}")
    parts.append(f"### What fails, comes back whole or keeps all, and why\n\n{_grouped(models, _reasons)}")
    parts.append(f"### What keeps channels that nothing reads\n\n{_grouped(models, _keepers)}")
    write_section("coverage.md", "coverage", "## Coverage\n\n" + "\n\n".join(parts))


def latest(records: Iterable[Record]) -> Models:
    """The latest record of each model and pattern, in order of first appearance."""
    models: Models = {}
    for record in records:
        models.setdefault(record["model"], {})[record["pattern"]] = record
    return models


def _summary(models: Models) -> str:
    rows = []
    for name in [*zoo.ZOOS, ""]:
        chosen = [found for key, found in models.items() if key.startswith(name)]
        measured = [found for found in chosen if not _has(found, "too large")]
        numbers = [
            len(chosen),
            len(measured),
            sum(set(networks.PATTERNS) <= found.keys() for found in measured),
            sum(all(record["status"] == "exact" for record in found.values()) for found in measured),
            sum(_shrinks(found) for found in measured),
            sum(any(record.get("captured") == "not" for record in found.values()) for found in measured),
            sum(_has(found, "WRONG") for found in measured),
            sum(any(_has(found, status) for status in ("error", "timeout", "harness")) for found in measured),
        ]
        rows.append([name or "**all**", *map(str, numbers)])
    header = [
        "",
        "models",
        "measured",
        "by all patterns",
        "exact",
        "exact and smaller",
        "not captured",
        "wrong",
        "failed",
    ]
    return f"{table(header, rows)}\n\n{_legend()}"


def _legend() -> str:
    patterns = ", ".join(f"`{pattern}`" for pattern in networks.PATTERNS)
    return (
        f"Exact: by every pattern measured (of {patterns}) the outputs in float64 differ by at most 1e-10 "
        "of the largest, at the example's size, with another batch and at another size if the model takes "
        "one; where a model is more sensitive than that, by no more than 30 times what one unit in the last "
        "place of its weights changes. Smaller: by `rows` and `random` it has fewer weights, without the "
        "one-dimensional ones of norms. Failed: export or the model raised, or took too long. Larger models "
        "are not measured."
    )


def _has(found: dict[str, Record], status: str) -> bool:
    return any(record["status"] == status for record in found.values())


def _shrinks(found: dict[str, Record]) -> bool:
    exact = all(record["status"] == "exact" for record in found.values())
    return exact and all(found[pattern].get("shrinks", False) for pattern in SHRINKING if pattern in found)


def _table(models: Models) -> str:
    patterns = [p for p in networks.PATTERNS if any(p in found for found in models.values())]
    rows = [[key.partition("/")[2], *_cells(found, patterns)] for key, found in models.items()]
    header = ["model", "captured", "parameters", *(f"{p}: left" for p in patterns), "difference", "export, s"]
    return table(header, rows)


def _cells(found: dict[str, Record], patterns: list[str]) -> Iterator[str]:
    measured = [record for record in found.values() if "weights" in record]
    yield _captured(max(measured, key=lambda record: record.get("opaque", 0))) if measured else ""
    yield f"{measured[0]['parameters'][0]:,}" if measured else ""
    for pattern in patterns:
        yield _left(found.get(pattern))
    differences = [record["difference"] for record in measured if "difference" in record]
    yield f"{max(differences):.0e}" if differences else ""
    yield f"{max(record['seconds'] for record in measured):.1f}" if measured else ""


def _captured(record: Record) -> str:
    """How, and what percentage of the exported weights is in modules that did not trace."""
    share = 100 * record.get("opaque", 0) / max(record["weights"][1], 1)
    return f"{record['captured']}, {share:.0f}% not traced" if share else str(record["captured"])


def _left(record: Record | None) -> str:
    """The weights that are left, or what went wrong."""
    if record is None:
        return ""
    if record["status"] != "exact":
        return f"**{record['status']}**"
    before, after = record["weights"]
    return f"{100 * after / before:.1f}%" if after < before else "all"


def _grouped(models: Models, reasons: Callable[[dict[str, Record]], set[str]]) -> str:
    """Models by reason, the most frequent reason first."""
    groups: dict[str, list[str]] = {}
    for key, found in models.items():
        for reason in sorted(reasons(found)):
            groups.setdefault(reason, []).append(key)
    order = sorted(groups, key=lambda reason: -len(groups[reason]))
    lines = [f"- **{len(groups[reason])}**: {reason}. {', '.join(groups[reason])}" for reason in order]
    return "\n".join(lines) or "Nothing."


def _reasons(found: dict[str, Record]) -> set[str]:
    return {reason for record in found.values() if (reason := _reason(record))}


def _reason(record: Record) -> str:
    """Why a record is not of an exact and smaller model, or ""."""
    message = re.sub(r"tensor\(.*", "a tensor", " ".join(record.get("message", "").split()))
    message = re.sub(r".*returned whole, without its masks, because its forward stays Python: ", "", message)
    if record["status"] == "exact" and not message:
        kept_all = record["pattern"] in SHRINKING and not record["shrinks"]
        return "exact, but no weight is removed" if kept_all else ""
    return f"{'whole' if record['status'] == 'exact' else record['status']}: {message[:160]}"


def _keepers(found: dict[str, Record]) -> set[str]:
    """The operations that an export names as keeping channels."""
    details = " ".join(record.get("detail", "") for record in found.values())
    return set(re.findall(r"(\S+) at \S+ keeps \d+ dead channels", details))
