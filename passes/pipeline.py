"""Passes in a row: each takes a valid graph and leaves a valid graph, and says what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import fx

from sparsefx.passes.examples import Inputs
from sparsefx.passes.program import remembered


@dataclass(frozen=True)
class Outcome:
    """What a pass did.

    Attributes:
        modified: whether it changed anything; run again at once, it changes nothing.
        detail: one line for the report.
    """

    modified: bool
    detail: str = ""


@dataclass(frozen=True)
class PassReport:
    """One row of a pipeline's report: a pass, what it did, and the seconds it took."""

    name: str
    modified: bool
    seconds: float
    detail: str

    def inside(self, part: str) -> PassReport:
        """The same, of a part of the model."""
        return replace(self, name=f"{part}: {self.name}") if part else self


class Pass(Protocol):
    """A graph rewrite: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """The name it is reported under."""
        ...

    def run(self, graph_module: fx.GraphModule, inputs: Inputs) -> Outcome:
        """Rewrite the module in place; its function on every input stays the same."""
        ...


Check = Callable[[str, fx.GraphModule], None]


def run_pipeline(
    passes: Sequence[Pass],
    graph_module: fx.GraphModule,
    inputs: Inputs,
    check: Check | None = None,
) -> list[PassReport]:
    """Run passes in order on one module, in place.

    Args:
        passes: the passes.
        graph_module: the module to rewrite, in evaluation mode.
        inputs: positional arguments that its forward accepts, at one or more sizes.
        check: called with the name and the module after each pass that changed it, to verify or to print.

    Returns:
        One report per pass.
    """
    with remembered():
        return [_run(step, graph_module, inputs, check) for step in passes]


def _run(step: Pass, graph_module: fx.GraphModule, inputs: Inputs, check: Check | None) -> PassReport:
    start = time.perf_counter()
    outcome = step.run(graph_module, inputs)
    if outcome.modified:
        graph_module.graph.lint()
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
        if check is not None:
            check(step.name, graph_module)
    return PassReport(step.name, outcome.modified, time.perf_counter() - start, outcome.detail)
