"""The table of imports between folders in docs/architecture.md, made by ``python docs/import_table.py``.

A folder is a row; a file at the top of the package, such as ``export.py``, is a row of its own. Every import
counts: at the top of a file, inside functions and under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- imports: begin -->", "<!-- imports: end -->"

Imports = Mapping[str, set[str]]
"""What each name imports."""


def modules() -> dict[str, Path]:
    """The modules of the library by name, with their files; ``passes/`` is ``sparsefx.passes``."""
    found = {}
    for top, prefix in (("sparsefx", ""), ("passes", "sparsefx.")):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if "passes" not in parts[1:]:  # the link sparsefx/passes
                found[prefix + ".".join(parts).removesuffix(".__init__")] = file
    return found


def imports_of_modules() -> dict[str, set[str]]:
    """For each module, the modules of the library that it imports anywhere in its text."""
    files = modules()
    return {name: _imported(file, files) - {name} for name, file in files.items()}


def _imported(file: Path, known: Mapping[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def imports_of_folders() -> dict[str, set[str]]:
    """For each folder, the folders that its files import."""
    files = modules()
    folders: dict[str, set[str]] = {}
    for module, imported in imports_of_modules().items():
        folder = folder_of(module, files)
        folders.setdefault(folder, set()).update({folder_of(name, files) for name in imported} - {folder})
    return folders


def folder_of(module: str, files: Mapping[str, Path]) -> str:
    """The row of the table that a module belongs to."""
    folder = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
    return module if folder == "sparsefx" else folder


def circle(imports: Imports) -> list[str]:
    """Names that import one another in a circle; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def table() -> str:
    """The table, the highest folder first: each stands above all that it imports."""
    imports = imports_of_folders()
    lines = ["| folder | imports |", "|---|---|"]
    for folder in reversed(
        list(TopologicalSorter({k: sorted(v) for k, v in sorted(imports.items())}).static_order())
    ):
        lines.append(
            f"| `{_short(folder)}` | {', '.join(f'`{_short(name)}`' for name in sorted(imports[folder]))} |"
        )
    return "\n".join(lines)


def _short(name: str) -> str:
    return name.removeprefix("sparsefx.")


def with_table(page: str) -> str:
    """A page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), encoding="utf-8")
