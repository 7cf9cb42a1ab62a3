"""Threads: the ones that torch computes with."""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from functools import cache
from pathlib import Path

import torch

from sparsefx.kernels.runtime import native


@cache
def _runtime() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch brought along, if it can be found."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("lib[gi]omp*"))
    for name in (*map(str, bundled), find_library("gomp")):
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None and hasattr(library, "GOMP_parallel"):
            return library
    return None


def available_threads() -> int:
    """Threads that a plan is run by: torch's number, or 1 where its runtime was not found."""
    return torch.get_num_threads() if _runtime() is not None else 1


def team_functions(threads: int) -> tuple[int, int, int]:
    """Addresses of: a thread's number, the number of threads, the barrier; zeros for one thread."""
    runtime = _runtime()
    if threads == 1 or runtime is None:
        return 0, 0, 0
    names = ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
    number, count, barrier = (ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value for name in names)
    return number or 0, count or 0, barrier or 0


def run_in_team(function: int, argument: int, threads: int) -> None:
    """Call ``void f(void *)`` once in every thread of a team."""
    runtime = _runtime()
    if threads == 1 or runtime is None:
        native.call(function, argument)
    else:
        runtime.GOMP_parallel(
            ctypes.c_void_p(function), ctypes.c_void_p(argument), ctypes.c_uint(threads), ctypes.c_uint(0)
        )
