"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import sparsefx


def _has_examples(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and ">>> " in Path(str(spec.origin)).read_text("utf-8")


MODULES = ["sparsefx", *(module.name for module in pkgutil.walk_packages(sparsefx.__path__, "sparsefx."))]
WITH_EXAMPLES = list(filter(_has_examples, MODULES))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert tried > 0
