"""The pages tell the truth: their code runs, their links lead somewhere, the site builds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.tables.page import BEGIN, END, results_page
from sparsefx.passes.analysis.ops import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "findings/README.md", *DOCS]
SMALLER = {"img_size=32": "img_size=32, depth=2", ".resnet18(": ".squeezenet1_1("}
"""Networks of many alike blocks in a page, and what shows as much in the quick run."""
PUBLIC = ["", ".methods", ".cycle", ".scores", ".regularisers", ".integrations", ".plot"]
PUBLIC += [".passes.analysis.ops"]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_of(page: str) -> list[str]:
    """The Python of a page, with empty lines before each block, so that errors name the page's lines."""
    blocks = re.finditer(r"^```python\n(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text_of(page).count("\n", 0, block.start(1)) + block[1] for block in blocks]


def _quick_or_slow(page: str) -> Any:
    """A page; that of public models exports a dozen of them."""
    return pytest.param(page, marks=pytest.mark.slow) if page == "docs/models.md" else page


# Checkpoints for many processes are written by one.
@pytest.mark.filterwarnings("ignore:torch.distributed is .* single process")
# Lightning reads pytrees by a name that newer torch calls deprecated.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
# Data of a few rows needs no processes of its own to load it.
@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers:UserWarning")
# Memory is pinned by default, where there is a device or not.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("shallow", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("page", [_quick_or_slow(page) for page in PAGES if code_of(page)])
def test_code_runs_one_block_after_the_other(
    page: str, shallow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = dict(OPERATIONS)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    try:
        for source in code_of(page):
            for large, small in SMALLER.items() if shallow else ():
                source = source.replace(large, small)
            exec(compile(source, page, "exec", dont_inherit=True), module.__dict__)
    finally:
        OPERATIONS.clear()
        OPERATIONS.update(known)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text_of(page))
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_all_that_is_public_stands_in_the_api_pages() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.rst"))
    entries = re.findall(r"^\.\. \S+:: (\S+)", pages, flags=re.MULTILINE)
    left_out = {name for line in re.findall(r":exclude-members: (.*)", pages) for name in line.split(", ")}
    words = {name.rpartition(".")[2] for name in entries}
    for module in (f"sparsefx{name}" for name in PUBLIC):
        public = importlib.import_module(module)
        places = {name: getattr(getattr(public, name), "__module__", "") for name in public.__all__}
        by_module = {name for name, place in places.items() if place in entries}
        whole = set(places) - left_out if module in entries else set()
        assert set(places) - by_module - whole - words == set(), module


@pytest.mark.slow
def test_site_builds_without_warnings_and_has_all_that_is_public(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*build, "docs", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    entries = (
        zlib.decompress((tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    )
    names = [name for name, kind, *_ in map(str.split, entries) if kind.startswith("py:")]
    documented = {name.rpartition(".")[2] for name in names}
    for module in PUBLIC:
        assert set(importlib.import_module(f"sparsefx{module}").__all__) <= documented
    results = (tmp_path / "results.html").read_text("utf-8")
    means = re.findall(r"[\d.]+ ± [\d.]+ \(\d+ seeds", results_page(Ledger(ROOT / "results")))
    assert len(means) >= 50
    assert all(mean in results for mean in means)
    assert "not kept in this file" not in results
    assert (tmp_path / "_images" / "figure2.png").exists()
    assert list(tmp_path.glob("_downloads/*/table1.csv"))


def test_the_page_in_the_repository_holds_no_figure_of_the_ledger() -> None:
    section = text_of("docs/results.md").partition(BEGIN)[2].partition(END)[0]
    assert "sparsefx report tables --ledger results" in section
    assert not re.search(r"\d\.\d", section)
