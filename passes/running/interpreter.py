"""Run a graph node by node, as its generated code would."""

from __future__ import annotations

from typing import Any

from torch import fx


class Interpreter(fx.Interpreter):
    """Hands functions lists and dicts of their own, which they may write to; fx's own are immutable."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """The arguments of a node, in plain containers."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_plain, args)), {key: _plain(value) for key, value in kwargs.items()}


def _plain(value: Any) -> Any:
    """A copy without the containers of fx; a list or dict that was computed stays what it is."""
    if isinstance(value, fx.immutable_collections.immutable_list):
        return [_plain(item) for item in value]
    if isinstance(value, fx.immutable_collections.immutable_dict):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if type(value) is tuple else value
