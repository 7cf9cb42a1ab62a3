"""Scripts in processes of their own, as a user runs them, but for what every one of them imports first.

Each is forked from a process that has imported torch, sparsefx and scikit-learn and does nothing else, where
the system has such; elsewhere it starts from nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_IMPORTED = [
    "distributed.made",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
]

context = multiprocessing.get_context(METHOD)
if METHOD == "forkserver":
    context.set_forkserver_preload(_IMPORTED)


@dataclass(frozen=True)
class Finished:
    """How a script ended and what it wrote."""

    returncode: int | None
    stdout: str
    stderr: str


def run_script(script: Path, *options: object, **environment: object) -> Finished:
    """Run a script to its end, with these options and environment variables besides."""
    with tempfile.TemporaryDirectory() as folder:
        process = start_script(script, *options, folder=folder, **environment)
        process.join()
        out, err = (Path(folder, name).read_text("utf-8") for name in ("out", "err"))
    return Finished(process.exitcode, out, err)


def run_source(source: str, folder: Path, *options: object, **environment: object) -> Finished:
    """Run the text of a script, which is written to a folder, to its end; that is its working directory."""
    script = folder / "script.py"
    script.write_text(f"import os\nos.chdir({str(folder)!r})\n{source}", encoding="utf-8")
    return run_script(script, *options, **environment)


def start_script(
    script: Path, *options: object, folder: str | None = None, **environment: object
) -> BaseProcess:
    """Start a script; with ``folder``, what it writes goes to the files ``out`` and ``err`` there."""
    variables = {name: str(value) for name, value in environment.items()}
    process = context.Process(target=_main, args=(str(script), [*map(str, options)], folder, variables))
    process.start()
    return process


def _main(script: str, options: list[str], folder: str | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    if folder is not None:
        for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
            os.dup2(os.open(Path(folder, name), os.O_CREAT | os.O_WRONLY), stream.fileno())
    sys.argv = [script, *options]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
