"""Record a graph at several sizes as one program, which marks the dimensions that follow the input."""

from __future__ import annotations

from torch import fx

from sparsefx.passes.graph.differences import mark_what_differs
from sparsefx.passes.graph.program import Program
from sparsefx.passes.graph.recorder import record_once
from sparsefx.passes.running.examples import Inputs


def record(graph_module: fx.GraphModule, inputs: Inputs) -> Program:
    """Run a graph in its present mode and without gradients, and write down what it does.

    Args:
        graph_module: the graph.
        inputs: positional arguments of its forward at one or more sizes. The program is that of the
            one with the fewest dimensions of size 1, which hide what a reshape mixes; the others
            tell which dimensions follow the input.
    """
    programs = [record_once(graph_module, values) for values in inputs]
    program = min(programs, key=_ones) if len(programs) > 1 else programs[0]
    program.result = programs[0].result
    for other in programs:
        if other is not program:
            mark_what_differs(program, other)
    return program


def _ones(program: Program) -> int:
    return sum(list(value.shape).count(1) for call in program.calls for value in call.outputs)
