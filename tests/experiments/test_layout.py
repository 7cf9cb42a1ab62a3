"""The folders of the experiments: which imports which, their size, and what they say of themselves."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "sparsefx" / "experiments"
FOLDERS = sorted({path.parent for path in EXPERIMENTS.rglob("*.py")})
MOST_ENTRIES = 12

MAY_IMPORT = {
    "": set(),
    "data": set(),
    "networks": set(),
    "ledger": {"networks"},
    "run.recipes": {"data"},
    "run.logs": {"ledger"},
    "run": {"data", "networks", "ledger", "run.recipes", "run.logs"},
    "tables": {"ledger", "run.recipes"},
}
"""Which other folders of the experiments the files of a folder import."""


def test_imports_between_folders_go_one_way() -> None:
    spec = importlib.util.spec_from_file_location("import_table", ROOT / "docs" / "import_table.py")
    assert spec is not None
    assert spec.loader is not None
    import_table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(import_table)
    prefix = "sparsefx.experiments"
    imports = {
        folder.removeprefix(prefix).strip("."): {
            name.removeprefix(f"{prefix}.") for name in imported if name.startswith(f"{prefix}.")
        }
        for folder, imported in import_table.imports_of_folders().items()
        if folder.startswith(prefix)
    }
    assert imports == MAY_IMPORT


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_small_and_says_what_is_in_it(folder: Path) -> None:
    entries = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(entries) <= MOST_ENTRIES
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = [path.stem for path in entries if path.stem != "__init__"]
    assert [name for name in named if f"``{name}``" not in about] == []
    assert "mport" in about  # what it may import
    assert folder == EXPERIMENTS or "To add a" in about
