"""The analyses of one graph, each computed when a pass first asks for it and again after it is invalid."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsefx.passes.analysis.domains.facts import Fact
from sparsefx.passes.analysis.propagate import forward_facts, live_elements
from sparsefx.passes.graph.program import Program, Value
from sparsefx.passes.graph.record import record
from sparsefx.passes.running.examples import Inputs


class Analyses:
    """The analyses of a graph in its present state.

    The recording is made again when the graph, its modules or its tensors have changed. Facts and live
    elements follow from the numbers in tensors, and are computed again after :meth:`invalidate`.

    Args:
        graph_module: the graph, in evaluation mode.
        inputs: positional arguments that its forward accepts, at one or more sizes.
    """

    def __init__(self, graph_module: fx.GraphModule, inputs: Inputs) -> None:
        self.graph_module, self.inputs = graph_module, inputs
        self._state: _State | None = None
        self._program: Program | None = None
        self._facts: dict[Value, Fact] | None = None
        self._live: dict[Value, Tensor] | None = None

    @property
    def last_recording(self) -> Program | None:
        """The last recording; the graph may have changed since."""
        return self._program

    @property
    def program(self) -> Program:
        """The ATen calls of the graph at every example size."""
        return self._recorded(self.inputs)

    @property
    def program_of_first(self) -> Program:
        """The ATen calls at the first size alone, cheaper and enough for what does not depend on sizes."""
        current = self._program
        if current is not None and _State.of(self.graph_module, self.inputs).matches(self._state):
            return current
        return self._recorded(self.inputs[:1])

    def facts(self, program: Program) -> Mapping[Value, Fact]:
        """What is known of each value of the last recording."""
        assert program is self._program, "the graph was recorded again since"
        if self._facts is None:
            self._facts = forward_facts(program)
        return self._facts

    def live(self, program: Program) -> Mapping[Value, Tensor]:
        """Which elements of each value of the last recording some output reads.

        Returns:
            A bool tensor a value, broadcastable to the value's shape.
        """
        if self._live is None:
            self._live = live_elements(program, self.facts(program))
        return self._live

    def invalidate(self) -> None:
        """Forget facts and live elements, after a pass changed numbers in parameters or buffers."""
        self._facts = self._live = None

    def _recorded(self, inputs: Inputs) -> Program:
        state = _State.of(self.graph_module, inputs)
        if self._program is None or not state.matches(self._state):
            self.invalidate()
            self._state, self._program = state, record(self.graph_module, inputs)
        return self._program


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
