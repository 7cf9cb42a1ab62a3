"""Functions that their authors told fx not to enter (``torch.fx.wrap``): a tracer of values may do so."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import _symbolic_trace
from torch.utils import _pytree as pytree

from sparsefx.passes.capture.example_proxy import ExampleProxy


@contextmanager
def entered_functions() -> Iterator[None]:
    """Let such functions go through the tracer of their arguments, by its ``call_wrapped``."""
    fx_module: Any = _symbolic_trace
    original = fx_module._create_wrapped_func
    fx_module._create_wrapped_func = _through_the_tracer
    try:
        yield
    finally:
        fx_module._create_wrapped_func = original


def _through_the_tracer(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        tracer: Any = next((leaf.tracer for leaf in leaves if isinstance(leaf, ExampleProxy)), None)
        return function(*args, **kwargs) if tracer is None else tracer.call_wrapped(function, args, kwargs)

    return called
