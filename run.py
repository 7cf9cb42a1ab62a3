"""Run the quickstart or the checks, or build the documentation, from a fresh clone.

This needs nothing but Python 3.10 or newer:

    python run.py quickstart [options of examples/quickstart.py]
    python run.py test [options of pytest]
    python run.py docs [options of sphinx-build]

The first run makes a virtual environment in .venv and installs sparsefx there, editable, with the
extra that the command needs; later runs find it and start at once. Lint, types, tests and documentation
run by the versions of .ci/constraints.txt; with NEWEST_TOOLS=1 in the environment, by the newest ones.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
CONSTRAINTS = Path(".ci", "constraints.txt")
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

EXTRAS = {"quickstart": "examples", "test": "dev", "docs": "docs"}
STEPS = {
    "quickstart": [["examples/quickstart.py"]],
    "test": [
        ["-m", "ruff", "check"],
        ["-m", "ruff", "format", "--check"],
        ["-m", "pytest", "--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"],
    ],
    "docs": [["-m", "sphinx", "-W", "--keep-going", "-b", "html", "docs", "build/docs"]],
}
# What runs meanwhile, and is shown afterwards: the tests leave a core idle while they begin and end.
BESIDE = {"test": [["-m", "mypy"]]}


def main() -> int:
    """Run the named command; the last of its steps takes the options. Returns the exit status."""
    command, *options = sys.argv[1:] or ["help"]
    if command not in STEPS:
        sys.stderr.write(__doc__ or "")
        return 0 if command in ("help", "-h", "--help") else 2
    if sys.version_info < (3, 10):  # noqa: UP036 - an older Python gets here and must be told
        sys.stderr.write(f"sparsefx needs Python 3.10 or newer; this is {sys.version.split()[0]}\n")
        return 2
    install(EXTRAS[command])
    *first, last = STEPS[command]
    beside = [(step, start(step)) for step in BESIDE.get(command, [])]
    status = next(filter(None, map(run, [*first, [*last, *options]])), 0)
    return next(filter(None, [status, *(finish(*started) for started in beside)]), 0)


def install(extra: str) -> None:
    """Install sparsefx with an extra, unless that was done for these very requirements and this Python."""
    done = ENVIRONMENT / f"installed-{extra}"
    pinned = [] if os.environ.get("NEWEST_TOOLS") else ["--constraint", str(CONSTRAINTS)]
    files = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", CONSTRAINTS))
    wanted = hashlib.sha256(files + " ".join([sys.version, *pinned]).encode()).hexdigest()
    if PYTHON.exists() and done.exists() and done.read_text() == wanted:
        return
    print(f"Installing sparsefx[{extra}] into {ENVIRONMENT}; this happens once.", flush=True)
    venv.create(ENVIRONMENT, with_pip=True)
    quiet = ["--quiet", "--progress-bar=off"] if "CI" in os.environ else []
    if status := run(["-m", "pip", "install", *quiet, *pinned, "--editable", f".[{extra}]"]):
        raise SystemExit(status)
    done.write_text(wanted)


def run(arguments: list[str]) -> int:
    """Run the environment's Python in the checkout and return its exit status."""
    print("+ python", *arguments, flush=True)
    return subprocess.run([PYTHON, *arguments], cwd=ROOT, env=environment(), check=False).returncode


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Let the environment's Python run beside what follows; what it says is kept."""
    return subprocess.Popen(
        [PYTHON, *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def environment() -> dict[str, str]:
    """The environment, where byte code may be kept: each of the tests' processes would compile all of it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def finish(arguments: list[str], started: subprocess.Popen[str]) -> int:
    """Wait for what was started, show what it said, and return its exit status."""
    said, _ = started.communicate()
    print("+ python", *arguments)
    print(said, end="", flush=True)
    return started.returncode


if __name__ == "__main__":
    sys.exit(main())
