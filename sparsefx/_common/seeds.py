"""Where random numbers come from: a seed, a generator, or torch's own generator; alike on all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from sparsefx.errors import ArgumentError

_SEEDS = range(-(2**63), 2**64)  # what torch.manual_seed takes


def given_generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
    """The generator that a caller asks for: its own, a new one of a seed, or None.

    Raises:
        ArgumentError: both are given, or one is something else.
    """
    if seed is None:
        if generator is not None and not hasattr(generator, "device"):
            raise ArgumentError(f"generator={generator!r} is no torch.Generator; pass seed= for a number")
        return generator
    if generator is not None:
        raise ArgumentError(f"seed={seed!r} and generator= are both given; pass one of them")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed not in _SEEDS:
        raise ArgumentError(f"seed={seed!r} is not a whole number of 64 bits")
    return torch.Generator().manual_seed(seed)


def cpu_generator(
    seed: int | None, generator: torch.Generator | None, groups: Iterable[Any] = ()
) -> torch.Generator:
    """The generator of a training run, on the CPU.

    Without a seed and a generator its seed is drawn from torch's default generator, as DataLoader's is, so
    that ``torch.manual_seed`` decides; the first rank of the groups draws for all.

    Args:
        seed: of the generator; None: see ``generator``.
        generator: is used as it is; None: one of its own.
        groups: process groups, one after the other, whose ranks get the same seed. All of them must ask.

    Raises:
        ArgumentError: both are given, or one cannot be used.
    """
    given = given_generator(seed, generator)
    if given is None:
        return torch.Generator().manual_seed(_agreed(int(torch.randint(2**62, ())), groups))
    if given.device.type != "cpu":
        raise ArgumentError(f"generator is on {given.device}; pass a CPU torch.Generator")
    return given


def all_ranks() -> list[Any]:
    """The group of all ranks, where there are several."""
    return [dist.group.WORLD] if dist.is_available() and dist.is_initialized() else []


def _agreed(seed: int, groups: Iterable[Any]) -> int:
    for group in groups:
        if dist.get_rank(group) >= 0:
            told = [seed]
            dist.broadcast_object_list(told, src=dist.get_global_rank(group, 0), group=group)
            (seed,) = told
    return seed
