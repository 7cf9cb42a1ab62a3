"""Functions that are no plain Python: custom autograd functions, and those of ``torch.jit.script``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.autograd import Function
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Applied:
    """Calls a custom autograd function, with its own backward.

    Attributes:
        function: the class.
    """

    function: type[Function]

    def __post_init__(self) -> None:
        self.__dict__["__name__"] = self.__dict__["__qualname__"] = self.function.__name__
        self.__dict__["__module__"] = self.function.__module__

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        return self.function.apply(*args)


@contextmanager
def known_to_proxies(create: Callable[..., Any] | None) -> Iterator[None]:
    """Let proxies through custom functions.

    A scripted function runs as the Python function that it was made of. An autograd function becomes one
    node, because what its forward does has another gradient.

    Args:
        create: makes a node that calls a function; None traces the forward of autograd functions.
    """
    scripted: Any = torch.jit.ScriptFunction
    function: Any = Function
    own_apply, own_call = function.__dict__["apply"], scripted.__call__

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if create is None or not _has_proxies((args, kwargs)):
            return own_apply.__get__(None, cls)(*args, **kwargs)
        return create("call_function", Applied(cls), args, kwargs)

    def call(called: Any, *args: Any, **kwargs: Any) -> Any:
        original = getattr(called, "_torchdynamo_inline", None)
        if original is None or not _has_proxies((args, kwargs)):
            return own_call(called, *args, **kwargs)
        return original(*args, **kwargs)

    function.apply, scripted.__call__ = classmethod(apply), call
    try:
        yield
    finally:
        function.apply, scripted.__call__ = own_apply, own_call


def _has_proxies(arguments: Any) -> bool:
    return any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves(arguments))
