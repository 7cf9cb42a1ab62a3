"""A program cut into sections, each a program of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sparsefx.kernels.ir.program import Concatenate, Instruction, RegionProgram


@dataclass(frozen=True)
class Section:
    """Some consecutive instructions of a program.

    Attributes:
        program: what they are by themselves, with the whole one's weights.
        reads: the whole program's numbers of its inputs.
        writes: and of its outputs.
    """

    program: RegionProgram
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@lru_cache(maxsize=512)
def section(program: RegionProgram, first: int, last: int) -> Section:
    """The instructions from ``first`` to before ``last``."""
    chosen = program.instructions[first:last]
    own = range(program.inputs + first, program.inputs + last)
    needed = {value for item in chosen for value in item.operands if value not in own}
    reads, writes = tuple(sorted(needed)), tuple(sorted(set(own) & live(program, last)))
    numbers = {value: index for index, value in enumerate((*reads, *own))}
    instructions = tuple(_renumbered(item, numbers) for item in chosen)
    outputs = tuple(numbers[value] for value in writes)
    return Section(RegionProgram(program.dims, len(reads), instructions, outputs), reads, writes)


def live(program: RegionProgram, before: int) -> set[int]:
    """Values that an instruction from ``before`` on, or the caller, reads."""
    later = program.instructions[before:]
    return {value for item in later for value in item.operands} | set(program.outputs)


def _renumbered(item: Instruction, numbers: dict[int, int]) -> Instruction:
    if isinstance(item, Concatenate):
        return Concatenate(tuple(numbers[value] for value in item.sources))
    names = [name for name in ("source", "other", "residual") if getattr(item, name, None) is not None]
    changed: dict[str, Any] = {name: numbers[getattr(item, name)] for name in names}
    return replace(item, **changed)
