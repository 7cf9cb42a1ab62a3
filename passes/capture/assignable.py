"""Proxies that record assignments to their values in the way in which Python executes them.

A proxy of fx has no ``__iadd__``. Python then falls back on ``__add__``, and in the graph the other names of
the tensor keep its old value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from sparsefx.passes.graph.in_place import FUNCTIONAL, FUNCTIONS, NAMES


class NotReplayable(RuntimeError):
    """A forward that a graph cannot replay."""


class Assignable(fx.Proxy):
    """A proxy that records assignments to what it stands for."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __getattr__(self, k: str) -> Any:
        return AssignableAttribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.keeps(name):
            if not _is_written_back(self, name, value):
                raise NotReplayable(f"it sets the attribute {name!r} of something computed")
            return
        object.__setattr__(self, name, value)

    def keeps(self, name: str) -> bool:
        """Whether an attribute is kept as it is: the proxy's own, or a mark that no tensor has by itself."""
        return not hasattr(Tensor, name)

    def assigned(self, name: str, value: Any) -> Any:
        """What ``self += value`` and its like give, by the operator's name."""
        return self.tracer.create_proxy("call_function", FUNCTIONS[name], (self, value), {})


def _is_written_back(proxy: fx.Proxy, name: str, value: Any) -> bool:
    """Whether an assignment is the last step of ``x.data += 1``: the memory has changed by then."""
    if not isinstance(value, fx.Proxy) or value.node.target not in FUNCTIONAL:
        return False
    read: Any = value.node.args[0]
    return read.target is getattr and read.args == (proxy.node, name)


def _method(name: str) -> Callable[[Any, Any], Any]:
    def assign(self: Any, value: Any) -> Any:
        return self.assigned(name, value)

    return assign


for _name in NAMES:
    setattr(Assignable, f"__{_name}__", _method(_name))


class AssignableAttribute(fx.proxy.Attribute, Assignable):
    """An attribute of a proxy, which becomes a node when it is used as a value."""

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node that reads the attribute; one that was erased is made again."""
        if self._node is not None and self._node._erased:  # with a module that turned out not to trace
            self._node = None
        return fx.proxy.Attribute.node.fget(self)  # type: ignore[attr-defined, no-any-return]
