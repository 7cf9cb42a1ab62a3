"""Capture a model's Python forward as a ``torch.fx`` graph, keeping what does not trace as leaves."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from sparsefx.passes.capture.argument_guards import require_default
from sparsefx.passes.capture.branches import is_metadata
from sparsefx.passes.capture.example_tracer import ExampleTracer
from sparsefx.passes.capture.module_tracer import ModuleTracer, reason_of
from sparsefx.passes.graph.layers import erase_unused
from sparsefx.passes.running.compare import gives, run
from sparsefx.passes.running.examples import Example, Examples, at_unusual_sizes, call, graph_inputs
from sparsefx.passes.running.untouched import untouched

_FREE = "sparsify(model, trace=False) leaves it free"


@dataclass(frozen=True)
class Capture:
    """A captured forward.

    Attributes:
        graph: the graph, or None where the model's own forward does not trace.
        opaque: the modules that did not trace and stay Python, by name, with the reason. The model
            itself is ``""``.
        caches: attributes of the model that the graph makes anew in each call, and keeps no longer.
    """

    graph: fx.Graph | None
    opaque: dict[str, str] = field(default_factory=dict)
    caches: frozenset[str] = frozenset()


def capture(
    model: nn.Module,
    examples: Examples = (),
    *,
    keeps_idle: bool = False,
    opaque: Mapping[str, str] | None = None,
) -> Capture:
    """Trace a model in its present mode.

    A module whose forward does not trace becomes a leaf; so does one whose forward cannot be replayed
    from a graph because it draws random numbers in Python, changes its own attributes, switches
    gradients or autocast, or has forward hooks. Arguments of ``forward`` whose default is None or a
    bool are specialised to it, since they steer control flow.

    With examples, tracing also knows the value of everything it meets: it can walk over chunks and
    shapes, count, and take the branches that no size decides.

    Args:
        model: the model; tensors that its forward creates are added to it as buffers that are not
            saved, otherwise it is not changed.
        examples: bound arguments of its forward, at several sizes (:mod:`sparsefx.passes.running.examples`).
        keeps_idle: keep modules that do nothing in evaluation, such as stochastic depth, as leaves.
        opaque: modules to keep as leaves, with the reason.

    Returns:
        The graph and the modules that stay opaque in it.
    """
    options: dict[str, Any] = {"keeps_idle": keeps_idle, "opaque": opaque}
    if not examples:
        return _trace(model, ModuleTracer(**options), _control_arguments(model))
    tracer = ExampleTracer(examples, assumes=True, **options)
    captured = _trace(model, tracer)
    if tracer.assumed and not _holds_at_unusual_sizes(model, captured.graph, examples[0]):
        return _trace(model, ExampleTracer(examples, **options))
    return captured


def _trace(model: nn.Module, tracer: ModuleTracer, specialised: dict[str, Any] | None = None) -> Capture:
    attributes = set(model.__dict__)
    try:
        graph = tracer.trace(model, concrete_args=specialised)
    except Exception as error:  # tracing runs the user's code on proxies: anything may be raised
        for constant in model.__dict__.keys() - attributes:  # fx's own, for tensors made in forward
            del model.__dict__[constant]
        return Capture(None, {"": reason_of(error)})
    if specialised:
        _restore_arguments(graph, specialised)
    reads = (node for node in reversed(graph.nodes) if _only_reads(node))
    erase_unused(graph, list(reads))
    _adopt_constants(model)
    graph._tracer_cls = ModuleTracer  # fx unpickles a graph by tracing its code again, without examples
    for node in graph.nodes:
        node.type = None  # annotations do nothing here, and torch 2.6 cannot pickle those that are strings
    return Capture(graph, tracer.opaque, frozenset(tracer.caches.get(model, ())))


def _only_reads(node: fx.Node) -> bool:
    return node.op == "get_attr" or node.target is operator.getitem or is_metadata(node)


def _holds_at_unusual_sizes(model: nn.Module, graph: fx.Graph | None, example: Example) -> bool:
    """Whether a graph computes what the model does where lengths are 1, odd, or differ from each other."""
    if graph is None:
        return False
    graph_module = fx.GraphModule(model, graph)
    for other in at_unusual_sizes(example):
        try:
            with torch.no_grad(), untouched(model, (other,)) as (copied,):
                expected = call(model.forward, copied)
        except Exception:  # the model does not take this size, so there is nothing to be equal to
            continue
        (inputs,) = graph_inputs(graph, [other])
        if not gives(functools.partial(run, graph_module, inputs), expected):
            return False
    return True


def _adopt_constants(model: nn.Module) -> None:
    """Make buffers of the tensors that forward creates: they then move with the model."""
    for name in [name for name in model.__dict__ if name.startswith("_tensor_constant")]:
        model.register_buffer(name, model.__dict__.pop(name), persistent=False)


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
                values = (specialised[node.target], node.target, _FREE)
                graph.call_function(require_default, (node, *values))
