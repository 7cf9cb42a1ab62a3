"""The section of docs/coverage.md that compares export with torch-pruning."""

from __future__ import annotations

from pages import table, write_section
from workers import Record


def write(records: list[Record]) -> None:
    """Write the section."""
    latest = {record["model"]: record for record in records}
    pruned = {key: record for key, record in latest.items() if "export_parameters" in record}
    complete = sum(record["status"] == "complete" for record in pruned.values())
    larger = [record for record in pruned.values() if record["status"] != "complete"]
    broken = sum(record["pruned_difference"] is None for record in larger)
    worst = max((record["difference"] for record in pruned.values()), default=0.0)
    text = (
        "## Against torch-pruning\n\n"
        "torch-pruning removes half of the channels of every group without a norm over channels; export gets "
        f"the same model with those parameters set to 0. Of {len(pruned)} models that torch-pruning prunes, "
        f"export leaves at most as many parameters for {complete}"
        f"{_about(len(larger), broken)}; its outputs differ from the zeroed "
        f"model's by at most {worst:.0e} of the largest. Where torch-pruning's own differ it has changed the "
        "function, and the zeros cannot go without changing it.\n\n"
    )
    header = ["model", "parameters", "torch-pruning", "export", "export / torch-pruning"]
    header += ["difference", "difference of torch-pruning"]
    rows = [[key, *_cells(record)] for key, record in pruned.items()]
    left = [f"- {key}: {_reason(record)}" for key, record in latest.items() if key not in pruned]
    text += table(header, rows) + "\n\nNot compared:\n\n" + "\n".join(left)
    write_section("coverage.md", "completeness", text)


def _about(larger: int, broken: int) -> str:
    """Those for which it leaves more."""
    return (
        f", more for {larger} (for {broken} of them, what torch-pruning leaves does not run)"
        if larger
        else ""
    )


def _cells(record: Record) -> list[str]:
    theirs, ours = record["pruned_parameters"], record["export_parameters"]
    ratio = f"{ours / theirs:.3f}"
    return [
        *(f"{count:,}" for count in (record["parameters"], theirs, ours)),
        ratio if record["status"] == "complete" else f"**{ratio}**",
        f"{record['difference']:.0e}",
        "does not run" if record["pruned_difference"] is None else f"{record['pruned_difference']:.0e}",
    ]


def _reason(record: Record) -> str:
    message = " ".join(record["message"].split())[:160]
    return f"{record['status']}: {message}"
