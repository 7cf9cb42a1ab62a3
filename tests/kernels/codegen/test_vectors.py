"""Vectors of both widths compute the same, whatever the processor has; a wrong width is refused."""

from pathlib import Path

import pytest
from processes import run_source

from sparsefx.errors import ArgumentError
from sparsefx.kernels.codegen import vectors


def test_the_other_width_computes_the_same(tmp_path):
    other = {8: "16", 16: "8"}[vectors.LANES]
    tests = Path(__file__).parents[1] / "runtime" / "test_convolution.py"
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "test_equals_torch or neighbours"]
    source = "import sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    ended = run_source(source, tmp_path, *options, tests, SPARSEFX_LANES=other)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "21 passed" in ended.stdout


@pytest.mark.parametrize("lanes", ["", "4", "sixteen"])
def test_no_other_number_of_lanes(lanes, monkeypatch):
    monkeypatch.setenv("SPARSEFX_LANES", lanes)
    with pytest.raises(ArgumentError, match=f"SPARSEFX_LANES='{lanes}' in the environment: set 8 or 16"):
        vectors._lanes()
