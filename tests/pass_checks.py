"""Checks that every rewriting pass inherits, and a graph as text."""

from __future__ import annotations

import copy

import torch
from networks import relative_difference
from torch import Tensor, fx, nn

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.capture.capture import capture
from sparsefx.passes.manager.pipeline import Pass, Pipeline
from sparsefx.passes.running.examples import bind


def graph_of(model: nn.Module, *xs: Tensor) -> fx.GraphModule:
    """The graph of a model, captured along calls if several are given."""
    graph = capture(model.eval(), [bind(model, (x,), {}) for x in xs if len(xs) > 1]).graph
    assert graph is not None
    return fx.GraphModule(model, graph)


def text(graph_module: fx.GraphModule) -> list[str]:
    """A line a node: its name, what it runs, what it reads; layers with the shape of their weight."""
    lines = []
    for node in graph_module.graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            weight = module._parameters.get("weight")
            bias = "+b" if module._parameters.get("bias") is not None else ""
            target = type(module).__name__ + (f"{list(weight.shape)}{bias}" if weight is not None else "")
        lines.append(f"{node.name} = {target}({', '.join(map(str, node.args))})")
    return lines


def check_pass(step: Pass, model: nn.Module, *xs: Tensor, removes: int | None = None) -> fx.GraphModule:
    """A valid graph out, an honest flag, equal outputs, and a second run that changes nothing.

    Args:
        step: the pass.
        model: what it is run on, in evaluation mode and float64.
        xs: inputs in float64, at one or more sizes.
        removes: by how many nodes the graph becomes shorter; None if that is not checked.
    """
    graph_module = graph_of(model.double(), *xs)
    before = copy.deepcopy(graph_module)
    inputs = [(x,) for x in xs]
    (report,) = Pipeline((step,)).run(graph_module, inputs)
    graph_module.graph.lint()
    assert report.modified == (not same(before, graph_module))
    if removes is not None:
        removed = len(before.graph.nodes) - len(graph_module.graph.nodes)
        assert removed == removes, "\n".join(("from", *text(before), "to", *text(graph_module)))
    with torch.no_grad():
        for x in xs:
            assert relative_difference(graph_module(x), before(x)) <= 1e-11
    after = copy.deepcopy(graph_module)
    assert not step.run(graph_module, Analyses(graph_module, inputs)).modified
    assert same(after, graph_module)
    return graph_module


def same(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    """Equal graphs and equal tensors."""
    mine, its = one.state_dict(), other.state_dict()
    return (
        one.code == other.code
        and mine.keys() == its.keys()
        and all(map(torch.equal, mine.values(), its.values()))
    )
