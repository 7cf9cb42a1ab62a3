"""Which of two functions is faster."""

from __future__ import annotations

import torch

from sparsefx.passes.running.timing import is_faster


def test_the_measurement_tells_much_work_from_little() -> None:
    big, small = torch.randn(600, 600), torch.randn(4, 4)
    assert is_faster(lambda: small @ small, lambda: big @ big)
    assert not is_faster(lambda: big @ big, lambda: small @ small)
