"""The direction of imports: no circle between files or folders, and the table of the architecture page."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("import_table", ROOT / "docs" / "import_table.py")
assert SPEC is not None
assert SPEC.loader is not None
import_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(import_table)
import_table.imports_of_modules = functools.cache(import_table.imports_of_modules)


def test_no_circle_between_files() -> None:
    assert import_table.circle(import_table.imports_of_modules()) == []


def test_no_circle_between_folders() -> None:
    assert import_table.circle(import_table.imports_of_folders()) == []


def test_passes_import_nothing_of_the_library_above() -> None:
    for module, imported in import_table.imports_of_modules().items():
        if module.startswith("sparsefx.passes"):
            assert {name for name in imported if not name.startswith("sparsefx.passes")} == set(), module


def test_the_page_has_the_present_table() -> None:
    page = import_table.PAGE.read_text("utf-8")
    assert import_table.with_table(page) == page, "python docs/import_table.py"


def test_circles_are_found() -> None:
    assert sorted(set(import_table.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}))) == [
        "a",
        "b",
        "c",
    ]
    assert import_table.circle({"a": {"b"}, "b": set()}) == []


@pytest.mark.parametrize(
    "text", ["def f():\n    import sparsefx.cli", "if TYPE_CHECKING:\n    from sparsefx import cli"]
)
def test_every_import_counts(text: str, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(text)
    assert import_table._imported(tmp_path / "file.py", import_table.modules()) == {"sparsefx.cli"}


def test_folders_hold_one_concept() -> None:
    """A folder that grows beyond what one look takes in holds more than one."""
    for folder in {file.parent for file in import_table.modules().values()}:
        entries = [e for e in folder.iterdir() if e.suffix == ".py" or (e / "__init__.py").exists()]
        assert len(entries) <= (24 if folder == ROOT / "sparsefx" else 16), folder
