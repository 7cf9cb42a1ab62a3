"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import sparsefx

MODULES = [module.name for module in pkgutil.walk_packages(sparsefx.__path__, "sparsefx.")]


@pytest.mark.parametrize("name", ["sparsefx", *(name for name in MODULES if not name.endswith("__main__"))])
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
