"""Record a graph at several sizes; one that is still the same is not run again."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

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
    memory = _memory.get()
    if memory is None:
        return _record_all(graph_module, inputs)
    state = _State.of(graph_module, inputs)
    if memory.program is None or not state.matches(memory.state):
        memory.state, memory.program = state, _record_all(graph_module, inputs)
    return memory.program


@dataclass(eq=False)
class Memory:
    """The graph that was recorded last; one that is still the same is not run again.

    Attributes:
        program: its program.
    """

    program: Program | None = None
    state: _State | None = None

    def numbers_changed(self) -> None:
        """Forget what was worked out from the numbers."""
        if self.program is not None:
            self.program.findings.clear()


_memory: ContextVar[Memory | None] = ContextVar("_memory", default=None)


@contextmanager
def remembered() -> Iterator[Memory]:
    """Within it, recordings are remembered."""
    memory = Memory()
    token = _memory.set(memory)
    try:
        yield memory
    finally:
        _memory.reset(token)


@dataclass(frozen=True)
class _State:
    """All that decides what a recording looks like: nodes, modules, tensors, inputs.

    Numbers in tensors may change in place: a program holds the same tensors and so sees it.
    """

    parts: tuple[Any, ...]  # compared by identity; held, so that no identity is used again
    text: tuple[str, ...]

    @classmethod
    def of(cls, graph_module: fx.GraphModule, inputs: Inputs) -> _State:
        nodes = list(graph_module.graph.nodes)
        modules = list(graph_module.named_modules(remove_duplicate=False))
        named = (graph_module.named_parameters, graph_module.named_buffers)
        tensors = [pair for names in named for pair in names(remove_duplicate=False)]
        parts = (*nodes, *(m for _, m in modules), *(t for _, t in tensors), *pytree.tree_leaves(inputs))
        words = [f"{node.op} {node.target} {node.args} {node.kwargs}" for node in nodes]
        words += [f"{name} {type(module)} {_settings(module)}" for name, module in modules]
        words += [f"{name} {tensor.shape} {tensor.data_ptr()}" for name, tensor in tensors]
        return cls(parts, tuple(words))

    def matches(self, other: _State | None) -> bool:
        """Whether recording again would give the same."""
        if other is None or len(self.parts) != len(other.parts) or self.text != other.text:
            return False
        return all(map(operator.is_, self.parts, other.parts))


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    return [
        (key, value) for key, value in vars(module).items() if isinstance(value, (int, float, str, tuple))
    ]


def _record_all(graph_module: fx.GraphModule, inputs: Inputs) -> Program:
    programs = [record_once(graph_module, values) for values in inputs]
    program = min(programs, key=_ones) if len(programs) > 1 else programs[0]
    program.result = programs[0].result
    for other in programs:
        if other is not program:
            mark_what_differs(program, other)
    return program


def _ones(program: Program) -> int:
    return sum(list(value.shape).count(1) for call in program.calls for value in call.outputs)
