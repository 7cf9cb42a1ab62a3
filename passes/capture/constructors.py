"""Functions that make a tensor from sizes alone, recorded in a graph where a size is a proxy.

Torch asks a proxy among the arguments how to run most functions. Of these it asks for few forms of the call
(``torch.zeros((n, 3))`` and not ``torch.zeros(n, 3)``), and before 2.7 for none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

CONSTRUCTORS = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros")


@contextmanager
def recorded(names: Iterable[str], create_proxy: Callable[..., Any]) -> Iterator[None]:
    """Let functions of torch take proxies of sizes and data types.

    Args:
        names: of the functions.
        create_proxy: of the tracer; it records a call that has a proxy among its arguments.
    """
    originals = {name: getattr(torch, name) for name in names}
    for name, original in originals.items():
        setattr(torch, name, _recording(original, create_proxy))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def _recording(original: Callable[..., Any], create_proxy: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def constructor(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
            return create_proxy("call_function", original, args, kwargs)
        return original(*args, **kwargs)

    return constructor
