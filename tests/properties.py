"""How many examples a property runs: few in the quick run, all of them among the slow tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

Test = TypeVar("Test", bound=Callable[..., None])

# The first example may compile, and the machine may be busy: neither says anything of the property.
_UNHURRIED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)

all_examples = False
"""Whether slow tests run; set by conftest.py before any test file is imported."""


def properties(examples: int = 100, quick: int | None = None) -> Callable[[Test], Test]:
    """Decorate a ``given`` test by its number of examples.

    The quick run takes ``quick`` of them (by default a tenth, at least 3), the same ones in every run. A run
    with slow tests (``-m slow``) takes all, other ones in every run, and counts the test among the slow ones.
    """
    few = settings(_UNHURRIED, max_examples=quick or max(3, examples // 10), derandomize=True)
    many = settings(_UNHURRIED, max_examples=examples)
    return (lambda test: pytest.mark.slow(many(test))) if all_examples else few
