"""The vectors that kernels are made of, as wide as this processor likes them."""

from __future__ import annotations

import os

import torch

from sparsefx.errors import ArgumentError

_VARIABLE = "SPARSEFX_LANES"


def _lanes() -> int:
    """16 where there is AVX-512, else 8: AVX2 has vectors of 8, LLVM makes two of 4 of them for NEON."""
    asked = os.environ.get(_VARIABLE)
    if asked is None:
        return 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
    if asked not in ("8", "16"):
        raise ArgumentError(f"{_VARIABLE}={asked!r} in the environment: set 8 or 16, or remove it")
    return int(asked)


LANES = _lanes()
"""Values that are computed side by side. The environment variable ``SPARSEFX_LANES`` may say otherwise."""

VECTOR_BYTES = 4 * LANES

SUMS = 16 if LANES == 16 else 14
"""Vectors that a convolution keeps in registers, with room for the inputs and the weight: AVX-512 has 32
registers, which is more than pays; AVX2 has 16, and NEON has 32 of half the width."""
