"""One version number, tools of exact versions, workflows that use them."""

import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import sparsefx
from sparsefx import cli
from sparsefx._common import version

ROOT = Path(__file__).resolve().parents[2]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project_version() -> str:
    return re.search(r'^\[project\]\n(?:.+\n)*?version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE)[1]


def test_the_version_is_the_projects() -> None:
    assert sparsefx.__version__ == project_version()


def test_no_other_file_of_the_package_has_the_number() -> None:
    files = [*(ROOT / "sparsefx").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    assert [str(path) for path in files if f'"{project_version()}"' in path.read_text("utf-8")] == []


def test_without_a_checkout_it_is_the_installed_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", {"sparsefx": "7.8.9"}.__getitem__)
    for project in (tmp_path / "pyproject.toml", tmp_path / "other.toml"):
        monkeypatch.setattr(version, "_PROJECT", project)
        assert version._version() == "7.8.9"
        (tmp_path / "other.toml").write_text('[project]\nname = "other"\nversion = "1.0"\n')


def test_citation_and_changelog_agree() -> None:
    number, date = re.search(
        r"^## \[(\d.*)\] - (\d{4}-\d\d-\d\d)$", text_of("CHANGELOG.md"), re.MULTILINE
    ).groups()
    assert number == project_version()
    assert f"\nversion: {number}\ndate-released: {date}\n" in text_of("CITATION.cff")


def test_command_line_names_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    printed = capsys.readouterr().out
    for name in ("torch", "numpy"):
        assert f"{name} {importlib.import_module(name).__version__}" in printed
    assert printed.startswith(f"sparsefx {project_version()} (")


def test_train_flushes_denormals_before_the_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = sys.modules["torch"]

    def is_flushed() -> bool:
        return torch.full((1,), 2e-38).mul(1e-2).view(torch.int32).item() == 0

    seen = []

    def settings(*_: object, **__: object) -> None:
        seen.append(is_flushed())
        raise sparsefx.ArgumentError("far enough")

    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    monkeypatch.setattr(cli, "settings", settings)
    assert cli.main(["train", "--network", "lenet-300-100", "--root", "."]) == 2
    assert seen == [True]
    assert not is_flushed()


def constraints() -> dict[str, str]:
    lines = [line for line in text_of(".ci/constraints.txt").splitlines() if not line.startswith("#")]
    return dict(
        re.fullmatch(r"([a-z-]+)(==[\w.]+(?:; python_version >= \"3\.\d+\")?)", line).groups()
        for line in lines
    )


def test_every_tool_is_pinned_and_nothing_that_sparsefx_needs() -> None:
    project = text_of("pyproject.toml")
    needed = set(re.findall(r'"([\w-]+)', re.search(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)[1]))
    tools = {
        "hypothesis",
        "mypy",
        "pytest",
        "pytest-xdist",
        "ruff",
        "sphinx",
        "furo",
        "myst-parser",
        "setuptools",
    }
    assert constraints().keys() == tools
    assert needed == {"numpy", "safetensors", "torch"}
    for tool in tools:
        assert f'"{tool}' in project


def test_pull_requests_take_the_pinned_tools_and_the_nightly_run_the_newest() -> None:
    nightly = "NEWEST_TOOLS"
    workflows = {
        path.name: path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")
    }
    assert {name for name, text in workflows.items() if nightly in text} == {"nightly.yml"}
    assert all("python run.py test" in text for text in workflows.values())
    assert {name for name, text in workflows.items() if "schedule:" in text} == {"nightly.yml", "slow.yml"}
    assert "run.py test -m slow" in workflows["slow.yml"]
    assert nightly in text_of("run.py")


@pytest.mark.parametrize("newest", [False, True])
def test_run_gives_pip_the_constraints(newest: bool, tmp_path: Path) -> None:
    """In a folder of its own, whose ``.venv`` has a Python that writes down what it is called with."""
    code = f"""
import os, sys, venv
sys.path.insert(0, {str(ROOT)!r})
os.environ.pop("NEWEST_TOOLS", None)
if {newest}:
    os.environ["NEWEST_TOOLS"] = "1"
import run
from pathlib import Path
run.ENVIRONMENT = Path({str(tmp_path)!r})
run.PYTHON = run.ENVIRONMENT / "python"
venv.create = lambda *_, **__: None
run.run = lambda arguments: print(*arguments) or 0
run.install("dev")
first = (run.ENVIRONMENT / "installed-dev").read_text()
run.PYTHON.touch()
run.install("dev")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    (install,) = [line for line in done.stdout.splitlines() if line.startswith("-m pip install")]
    assert ("--constraint" not in install) == newest
    assert newest or (ROOT / re.search(r"--constraint (\S+)", install)[1]).is_file()


@pytest.mark.parametrize(("checks", "tests", "status"), [(0, 0, 0), (1, 0, 1), (0, 5, 5), (1, 5, 5)])
def test_run_shows_what_ran_beside_the_tests_and_fails_with_either(
    checks: int,
    tests: int,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    run = importlib.import_module("run")
    monkeypatch.setattr(run, "PYTHON", sys.executable)
    monkeypatch.setattr(run, "install", lambda extra: None)
    ends = "print({!r}, flush=True); raise SystemExit({})".format
    monkeypatch.setitem(run.BESIDE, "test", [["-c", ends("types", checks)]])
    monkeypatch.setitem(run.STEPS, "test", [["-c", ends("tests", tests)]])
    monkeypatch.setattr(sys, "argv", ["run.py", "test"])
    assert run.main() == status
    said = capfd.readouterr().out.splitlines()
    assert [line for line in said if line in ("tests", "types")] == ["tests", "types"]
