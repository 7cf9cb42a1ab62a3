"""The folders of the experiments: imports go one way, none is hidden, and a folder is small."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sparsefx.experiments

PACKAGE = "sparsefx.experiments"
ROOT = Path(next(iter(sparsefx.experiments.__path__)))
FILES = sorted(ROOT.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
MOST_ENTRIES = 12

MAY_IMPORT = {
    "data": set(),
    "networks": set(),
    "ledger": {"networks"},
    "run/recipes": {"data"},
    "run/logs": {"ledger"},
    "run": {"data", "networks", "ledger", "run/recipes", "run/logs"},
    "tables": {"ledger", "run/recipes"},
}
"""Which other folders of the experiments the files of a folder import."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports anywhere, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                is_module = submodule in MODULES and not hasattr(
                    importlib.import_module(node.module), "__all__"
                )
                yield submodule if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def folder_of(module: str) -> str:
    return MODULES[module].parent.relative_to(ROOT).as_posix()


GRAPH = {module: {name for name in imported(path) if name in MODULES} for module, path in MODULES.items()}


def test_there_is_no_circle_of_files() -> None:
    assert len(GRAPH) > 40
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {error.args[1]}")


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_between_folders_go_one_way(folder: str) -> None:
    modules = [module for module in GRAPH if folder_of(module) == folder]
    others = {folder_of(name) for module in modules for name in GRAPH[module]} - {folder}
    assert others == MAY_IMPORT[folder]


def test_every_folder_is_known_and_there_is_no_circle_of_folders() -> None:
    assert {folder.relative_to(ROOT).as_posix() for folder in FOLDERS} - {"."} == MAY_IMPORT.keys()
    TopologicalSorter(MAY_IMPORT).prepare()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_small_and_says_what_is_in_it(folder: Path) -> None:
    entries = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(entries) <= MOST_ENTRIES
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = [path.stem for path in entries if path.stem != "__init__"]
    assert [name for name in named if f"``{name}``" not in about] == []
    assert "mport" in about  # what it may import
    assert folder == ROOT or "To add a" in about
