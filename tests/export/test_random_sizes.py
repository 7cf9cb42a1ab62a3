"""Export at other sizes than the example's: what the model answers or a clear error, never another answer."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from random_sizes import sized_models
from torch import nn

import sparsefx
from sparsefx.passes.capture.size_guards import SizeError

Shapes = list[tuple[int, ...]]


def other_shapes(shapes: Shapes, chance: random.Random) -> Shapes:
    """Each size another, or the same; equal ones mostly stay equal."""
    changed: dict[tuple[bool, int], int] = {}
    return [
        tuple(
            size
            if dim == 1
            else changed.setdefault((dim == 0, size), _other(size, chance))
            if chance.random() < 0.7
            else _other(size, chance)
            for dim, size in enumerate(shape)
        )
        for shape in shapes
    ]


def _other(size: int, chance: random.Random) -> int:
    return chance.choice([size, chance.randint(1, size + 3), chance.randint(size, 3 * size), 1])


@torch.no_grad()
def check(model: nn.Module, shapes: Shapes, seed: int, count: dict[str, int] | None = None) -> None:
    """The same at ten sizes, or refused."""
    chance = random.Random(seed)
    inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compact = sparsefx.export(model, inputs)
    found = count if count is not None else {}
    found[compact.report.captured] = found.get(compact.report.captured, 0) + 1
    for _ in range(10):
        others = other_shapes(shapes, chance)
        x = tuple(torch.randn(shape, dtype=torch.float64) for shape in others)
        try:
            expected = model(*x)
        except AssertionError:  # of the model's own, which an export leaves out
            continue
        except RuntimeError:
            with pytest.raises((RuntimeError, SizeError, IndexError)):
                print("answered", compact(*x).shape, others)
            continue
        try:
            actual = compact(*x)
        except SizeError:
            found["refused"] = found.get("refused", 0) + 1
            assert others != shapes
            continue
        found["same"] = found.get("same", 0) + 1
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@properties(3000, quick=3)
@given(sized_models(), st.integers(0, 999))
def test_random_models_at_random_sizes(made: tuple[nn.Module, Shapes], seed: int) -> None:
    check(*made, seed)
