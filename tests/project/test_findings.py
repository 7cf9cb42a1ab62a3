"""Findings run outside CI; what can be said of them without running them is held here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "findings"
FINDINGS = sorted(FOLDER.glob("*.sh"))
posix = pytest.mark.skipif(sys.platform == "win32", reason="the mode and Bash are POSIX's")


def test_the_folder_holds_findings_and_their_list_alone() -> None:
    assert FINDINGS
    assert sorted(FOLDER.iterdir()) == sorted([*FINDINGS, FOLDER / "README.md"])


def test_each_is_listed_once_in_order() -> None:
    rows = re.findall(r"^\| \[(.+)\]\(\1\) \|", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert rows == [path.name for path in FINDINGS]


@posix
@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_it_is_executable_bash(path: Path) -> None:
    assert path.read_text("utf-8").startswith("#!/usr/bin/env bash\n# ")
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_it_installs_pinned_packages_into_a_folder_that_it_removes(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "\nset -euo pipefail\nfolder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\n" in text
    (install,) = re.findall(
        r"pip install --quiet --no-compile --target \"\$folder\" (.*?) \|\| exit 2$", text, re.M | re.S
    )
    packages = install.replace("\\\n", " ").split()
    assert packages
    assert all(re.fullmatch(r"[a-z-]+==\d+(\.\d+)+", package) for package in packages)
    listed = (FOLDER / "README.md").read_text("utf-8").partition(f"({path.name})")[2].partition("\n")[0]
    main = [package for package in packages if not package.startswith("numpy==")]
    assert [package for package in main if package.replace("==", " ") not in listed] == []


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_it_says_what_it_saw_and_fails_if_that_changes(path: Path) -> None:
    comment, _, script = path.read_text("utf-8").partition("\nset -euo pipefail\n")
    assert "\n# Seen:\n#\n#     " in comment
    assert '"the behaviour has changed"' in script
    assert "print(" in script


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_it_is_without_sparsefx(path: Path) -> None:
    assert "sparsefx" not in path.read_text("utf-8")
