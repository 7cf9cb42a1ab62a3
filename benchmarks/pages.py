"""Sections of the documentation that benchmarks write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[1] / "docs"


def write_section(page: str, name: str, text: str) -> None:
    """Put a section into a page, in the place of the former one of that name, or at its end."""
    path = _DOCS / page
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = path.read_text().partition(begin)
    after = rest.partition(end)[2].lstrip("\n")
    new = f"{before.rstrip()}\n\n{begin}\n\n{text.strip()}\n\n{end}\n"
    path.write_text(f"{new}\n{after}" if after else new)


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
