"""What is installed: the folder passes/ as sparsefx.passes, every module once, nothing else."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"sparsefx": "sparsefx", "passes": "sparsefx/passes"}


def copy_checkout(destination: Path, *, link: bool) -> None:
    """What a build reads; the link sparsefx/passes as one, or as Git writes it where there are no links."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, destination)
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__", *(["passes"] if folder == "sparsefx" else []))
        shutil.copytree(ROOT / folder, destination / folder, ignore=ignore)
    if link:
        (destination / "sparsefx" / "passes").symlink_to(Path("..", "passes"), target_is_directory=True)
    else:
        (destination / "sparsefx" / "passes").write_text("../passes")


def build_wheel(checkout: Path) -> list[str]:
    """The files of the wheel, built without a network by the build backend itself."""
    build = "import setuptools.build_meta as backend; backend.build_wheel('wheels')"
    (checkout / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)
    (path,) = (checkout / "wheels").glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        return wheel.namelist()


def expected_modules() -> list[str]:
    """Every module of the checkout, under the name that it is installed as."""
    return sorted(
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
        if (ROOT / "sparsefx" / "passes") not in path.parents
    )


@pytest.mark.parametrize("link", [True, False])
def test_wheel_holds_every_module_once(link: bool, tmp_path: Path) -> None:
    if link and sys.platform == "win32":
        pytest.skip("making links needs a privilege on Windows")
    copy_checkout(tmp_path, link=link)
    names = build_wheel(tmp_path)
    assert sorted(name for name in names if name.endswith(".py")) == expected_modules()
    assert "sparsefx/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sparsefx"}


def test_passes_is_importable_under_its_own_name_only(tmp_path: Path) -> None:
    assert importlib.util.find_spec("sparsefx.passes") is not None
    look = "import importlib.util; print(importlib.util.find_spec('passes'))"
    found = subprocess.run(
        [sys.executable, "-c", look], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "None"
