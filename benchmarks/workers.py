"""A process a model, with a time and a memory limit; results in a file of JSON lines."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Record = dict[str, Any]

PRELOADED = ["torch", "torchvision", "sparsefx", "timm", "transformers.modeling_utils", "diffusers"]
TOO_LONG = "longer than"

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]


def limit_memory(gigabytes: float) -> None:
    """Let allocations of this process fail beyond a limit, rather than the machine."""
    if resource is not None:
        limit = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run(target: Callable[..., None], arguments: Sequence[Any], *, timeout: float, gigabytes: float) -> str:
    """Call a function in a process of its own.

    Args:
        target: a function of a module; what it finds out it writes to a file.
        arguments: its arguments.
        timeout: seconds until it is ended.
        gigabytes: memory that it may allocate.

    Returns:
        Why it ended early, or "".
    """
    receiver, sender = _context().Pipe(duplex=False)
    process = _context().Process(target=_guarded, args=(target, arguments, gigabytes, sender))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return f"{TOO_LONG} {timeout:.0f} s"
    if receiver.poll():
        return str(receiver.recv())
    return "" if process.exitcode == 0 else f"exit status {process.exitcode}"


def _guarded(
    target: Callable[..., None], arguments: Sequence[Any], gigabytes: float, errors: Connection
) -> None:
    limit_memory(gigabytes)
    try:
        target(*arguments)
    except Exception as error:  # whatever a model raises is told to the parent
        errors.send(f"{type(error).__name__}: {error}"[:400])


@cache
def _context() -> Any:
    """Processes that start with the heavy imports done, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def append(path: Path, records: Sequence[Record]) -> None:
    """Add records to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read(path: Path) -> Iterator[Record]:
    """The records of a file of JSON lines, none if there is no such file."""
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())
