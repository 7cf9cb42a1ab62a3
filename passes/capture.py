"""Capture a model's Python forward as a ``torch.fx`` graph, keeping what does not trace as leaves."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn


@dataclass(frozen=True)
class Capture:
    """A captured forward.

    Attributes:
        graph: the graph, or None where the model's own forward does not trace.
        opaque: the modules that did not trace and stay Python, by name, with the reason. The model
            itself is ``""``.
    """

    graph: fx.Graph | None
    opaque: dict[str, str] = field(default_factory=dict)


def capture(model: nn.Module) -> Capture:
    """Trace a model in its present mode.

    A module whose forward does not trace becomes a leaf and the trace starts again; so does one
    whose forward cannot be replayed from a graph because it draws random numbers in Python or
    changes its own attributes. Arguments of ``forward`` whose default is None or a bool are
    specialised to it, since they steer control flow.

    Args:
        model: the model; it is not changed.

    Returns:
        The graph and the modules that stay opaque in it.
    """
    specialised = _control_arguments(model)
    opaque: dict[str, str] = {}
    while True:
        tracer = _Tracer(opaque)
        try:
            with _restored_rng():
                graph = tracer.trace(model, concrete_args=specialised)
        except Exception as error:  # tracing runs the user's code on proxies: anything may be raised
            culprit = tracer.culprit or ""
            opaque[culprit] = _first_line(error)
            if culprit == "":
                return Capture(None, {"": opaque[""]})
            continue
        _restore_argument_names(graph, specialised)
        return Capture(graph, _still_relevant(opaque, graph))


class _Tracer(fx.Tracer):
    """Stops at torch's own layers and their subclasses, and at the modules known to be opaque."""

    # A buffer read while tracing would otherwise be folded in as a constant, and go stale when a
    # checkpoint is loaded.
    proxy_buffer_attributes = True

    def __init__(self, opaque: dict[str, str] | None = None) -> None:
        super().__init__()
        self.opaque = opaque or {}  # fx makes one without arguments when it unpickles a graph
        self.culprit: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque:
            return True
        return super().is_leaf_module(m, module_qualified_name) or _inherits_torch_forward(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        try:
            if self.is_leaf_module(m, path):
                return super().call_module(m, forward, args, kwargs)
            with _must_be_replayable(m):
                return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.culprit = self.culprit or path  # the innermost module sees the error first
            raise

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _must_be_replayable(root):
            return super().trace(root, concrete_args)


class _NotReplayable(RuntimeError):
    """A forward that a graph cannot replay."""


@contextmanager
def _must_be_replayable(module: nn.Module) -> Iterator[None]:
    """Refuse a forward with an effect that its graph would lose; undo that effect."""
    attributes, buffers = dict(module.__dict__), dict(module._buffers)
    seeds = _rng_state()
    yield
    changed = [key for key in module.__dict__ if module.__dict__[key] is not attributes.get(key, module)]
    changed += [key for key in module._buffers if module._buffers[key] is not buffers.get(key, module)]
    changed = [key for key in changed if not key.startswith("_tensor_constant")]
    if changed:
        module.__dict__.clear()
        module.__dict__.update(attributes)
        module._buffers.clear()
        module._buffers.update(buffers)
        raise _NotReplayable(f"its forward changes its attribute {changed[0]!r}")
    if _rng_state() != seeds:
        raise _NotReplayable("its forward draws random numbers outside the graph")


def _rng_state() -> tuple[bytes, object]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate()


@contextmanager
def _restored_rng() -> Iterator[None]:
    python_state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python_state)


def _inherits_torch_forward(module: nn.Module) -> bool:
    """Whether a user's subclass of a torch layer computes just what that layer does."""
    if isinstance(module, (nn.Sequential, fx.GraphModule)):
        return False
    return str(getattr(type(module).forward, "__module__", "")).startswith("torch.nn.modules.")


def _control_arguments(model: nn.Module) -> dict[str, Any] | None:
    """The arguments of forward with a default of None or a bool, at that default."""
    if isinstance(model, fx.GraphModule):
        return None
    parameters = inspect.signature(model.forward).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is None or isinstance(p.default, bool)}
    return found or None


def _restore_argument_names(graph: fx.Graph, specialised: dict[str, Any] | None) -> None:
    """Undo fx's renaming of specialised arguments (``y`` to ``y_1``), so that keywords still work.

    fx's own assertion stays in the graph: a caller who passes another value is told so.
    """
    names = set(specialised or ())
    for node in graph.nodes:
        original = str(node.target).rpartition("_")[0]
        if node.op == "placeholder" and original in names:
            node.target = original


def _still_relevant(opaque: dict[str, str], graph: fx.Graph) -> dict[str, str]:
    """The opaque modules that the final graph calls: those inside another opaque one are not named."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return {path: reason for path, reason in opaque.items() if path in called}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
