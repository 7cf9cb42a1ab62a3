"""Numbers of an array in another order."""

from __future__ import annotations

from functools import cache

from sparsefx.kernels.codegen.builder import F32, Code, Kernel


@cache
def reorder() -> Kernel:
    """``target[i] = source[order[i]]``, of ``count`` floats."""
    code = Code(("*source", "*target", "*order", "count"))
    with code.loop(*code.share(code["count"])) as index:
        value = code.read(code["source"], code.read_index(code["order"], index), F32)
        code.store(value, code.element(code["target"], index, F32))
    return code.finish()
