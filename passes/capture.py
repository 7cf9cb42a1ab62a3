"""Capture a model's Python forward as a ``torch.fx`` graph, keeping what does not trace as leaves."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
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
    whose forward cannot be replayed from a graph because it draws random numbers in Python, changes
    its own attributes, switches gradients or autocast, or has forward hooks. Arguments of
    ``forward`` whose default is None or a bool are specialised to it, since they steer control flow.

    Args:
        model: the model; tensors that its forward creates are added to it as buffers that are not
            saved, otherwise it is not changed.

    Returns:
        The graph and the modules that stay opaque in it.
    """
    specialised = _control_arguments(model)
    opaque: dict[str, str] = {}
    attributes = set(model.__dict__)
    while True:
        tracer = _Tracer(opaque)
        try:
            with _restored_rng():
                graph = tracer.trace(model, concrete_args=specialised)
        except Exception as error:  # tracing runs the user's code on proxies: anything may be raised
            for constant in model.__dict__.keys() - attributes:  # fx's own, for tensors made in forward
                del model.__dict__[constant]
            culprit = tracer.culprit or ""
            opaque[culprit] = _first_line(error)
            if culprit == "":
                return Capture(None, {"": opaque[""]})
            continue
        if specialised:
            _restore_arguments(graph, specialised)
        _adopt_constants(model)
        for node in graph.nodes:
            node.type = (
                None  # annotations do nothing here, and torch 2.6 cannot pickle those that are strings
            )
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
        self.contexts = _contexts()

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if _contexts() != self.contexts:
            raise _NotReplayable("its forward switches gradients or autocast on or off")
        return super().create_proxy(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque:
            return True
        return super().is_leaf_module(m, module_qualified_name) or _inherits_torch_forward(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)  # what fails here is its caller's doing
        try:
            if m._forward_hooks or m._forward_pre_hooks:
                raise _NotReplayable("it has forward hooks")
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
    before = {part: _Attributes(part) for part in module.modules()}
    seeds = _rng_state()
    try:
        yield
    finally:
        changed = [name for attributes in before.values() for name in attributes.restore()]
    if changed:
        raise _NotReplayable(f"its forward changes its attribute {changed[0]!r}")
    if _rng_state() != seeds:
        raise _NotReplayable("its forward draws random numbers outside the graph")


def _adopt_constants(model: nn.Module) -> None:
    """Make buffers of the tensors that forward creates: they then move with the model."""
    for name in [name for name in model.__dict__ if name.startswith("_tensor_constant")]:
        model.register_buffer(name, model.__dict__.pop(name), persistent=False)


def _contexts() -> tuple[bool, ...]:
    """The switches that a graph does not record."""
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


class _Attributes:
    """A module's attributes at one moment, and what its lists, dicts and sets contained then."""

    def __init__(self, module: nn.Module) -> None:
        self.live = module.__dict__
        self.attributes = dict(module.__dict__)
        containers = {k: v for k, v in module.__dict__.items() if isinstance(v, (list, dict, set))}
        self.contents = {key: copy.copy(value) for key, value in containers.items()}

    def restore(self) -> list[str]:
        """Undo every change since then; the names of what changed."""
        constants = {key: value for key, value in self.live.items() if key.startswith("_tensor_constant")}
        before = self.attributes | constants  # fx's own, for tensors made in forward
        changed = [key for key in self.live | before if self.live.get(key, self) is not before.get(key, self)]
        if changed:
            self.live.clear()
            self.live.update(before)
        for key, contents in self.contents.items():
            container = self.live[key]
            if _identities(container) != _identities(contents):
                changed.append(key)
                container.clear()
                container.extend(contents) if isinstance(container, list) else container.update(contents)
        return changed


def _identities(container: list[Any] | dict[Any, Any] | set[Any]) -> list[int]:
    keys = list(map(id, container))
    return keys + list(map(id, container.values())) if isinstance(container, dict) else keys


def _rng_state() -> tuple[bytes, object, bytes]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), pickle.dumps(numpy.random.get_state())


@contextmanager
def _restored_rng() -> Iterator[None]:
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


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


def _restore_arguments(graph: fx.Graph, specialised: dict[str, Any]) -> None:
    """Undo fx's renaming of specialised arguments (``y`` to ``y_1``), and say it our way if they differ.

    fx's own assertions name no remedy, and its one for None cannot be pickled.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        original = str(node.target).rpartition("_")[0]
        if original not in specialised:
            continue
        node.target = original
        for user in list(node.users):
            for assertion in (*user.users, user):
                graph.erase_node(assertion)
    with graph.inserting_after(placeholders[-1]):
        for node in placeholders:
            if node.target in specialised:
                graph.call_function(require_default, (node, specialised[node.target], node.target))


def require_default(value: Any, default: Any, name: str) -> None:
    """Refuse a value other than the default that a graph was traced with.

    Raises:
        TypeError: the value differs.
    """
    if isinstance(value, fx.Proxy):  # the graph is being traced again, for example to unpickle it
        value.tracer.create_proxy("call_function", require_default, (value, default, name), {})
    elif value is not default:
        raise TypeError(f"argument {name!r} was traced as {default!r} and cannot change; got {value!r}")


def _still_relevant(opaque: dict[str, str], graph: fx.Graph) -> dict[str, str]:
    """The opaque modules that the final graph calls: those inside another opaque one are not named."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return {path: reason for path, reason in opaque.items() if path in called}


def _first_line(error: Exception) -> str:
    if isinstance(error, _NotReplayable):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
