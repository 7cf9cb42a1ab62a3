"""Which of two ways to compute the same is faster on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

When = Literal["auto", "never", "always"]
"""Whether to rewrite: ``"auto"`` where that is faster here."""

GAIN = 0.95
"""A rewrite must take at most this part of the time of what it replaces."""

_REPETITIONS = 7


def is_faster(one: Callable[[], Any], other: Callable[[], Any]) -> bool:
    """Whether the first function is clearly faster on this machine."""
    first, second = medians(one, other)
    return first < GAIN * second


@torch.no_grad()
def medians(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that two functions take: medians of interleaved runs, the first run of each left out."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPETITIONS + 1):
        for function, times in zip((one, other), seconds, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    first, second = (statistics.median(times[1:]) for times in seconds)
    return first, second
