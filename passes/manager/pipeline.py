"""Passes in a row: each takes a valid graph and leaves a valid graph, and says what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import fx

from sparsefx.passes.capture.module_tracer import reason_of
from sparsefx.passes.graph.record import Memory, remembered
from sparsefx.passes.running.compare import interpret
from sparsefx.passes.running.examples import Inputs

REPORT_IT = "please report this with the model's code"


@dataclass(frozen=True)
class KeptChannels:
    """Empty channels of a layer that are still there.

    Attributes:
        layer: the layer's name.
        side: ``"input"`` or ``"output"`` channels.
        count: how many.
        reason: what keeps them.
    """

    layer: str
    side: str
    count: int
    reason: str


@dataclass(frozen=True)
class RegionReport:
    """Layers that a backend can compute together, or one that it cannot compute.

    Attributes:
        layers: their names.
        dense: seconds of the graph's own nodes on the example inputs; None where it was not measured.
        sparse: seconds of the backend, likewise.
        taken: whether the backend computes them now.
        reason: why the backend cannot; empty where it can.
    """

    layers: tuple[str, ...]
    dense: float | None
    sparse: float | None
    taken: bool
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a pass did.

    Attributes:
        modified: whether it changed anything; run again at once, it changes nothing.
        detail: one line for the report.
        kept: the empty channels that it found to stay.
        regions: the parts of the graph that a backend can compute.
    """

    modified: bool
    detail: str = ""
    kept: tuple[KeptChannels, ...] = ()
    regions: tuple[RegionReport, ...] = ()


@dataclass(frozen=True)
class PassReport:
    """One row of a pipeline's report: a pass, the seconds it took, what it did and found."""

    name: str
    modified: bool
    seconds: float
    detail: str
    kept: tuple[KeptChannels, ...] = ()
    regions: tuple[RegionReport, ...] = ()

    def inside(self, part: str) -> PassReport:
        """The same, of a part of the model."""
        if not part:
            return self
        kept = tuple(replace(one, layer=f"{part}.{one.layer}") for one in self.kept)
        regions = tuple(
            replace(one, layers=tuple(f"{part}.{layer}" for layer in one.layers)) for one in self.regions
        )
        return replace(self, name=f"{part}: {self.name}", kept=kept, regions=regions)


class Refused(Exception):
    """Why a graph is not used."""


class Pass(Protocol):
    """A graph rewrite: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """The name it is reported under."""
        ...

    def run(self, graph_module: fx.GraphModule, inputs: Inputs) -> Outcome:
        """Rewrite the module in place; its function on every input stays the same."""
        ...


Check = Callable[[str, Callable[[], Any]], None]


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
        check: called with the name of a pass that changed the module and a function that gives, or raises,
            what it now returns for the first of the inputs, node by node. Mostly that is known from the next
            recording; only the last pass takes a run of its own.

    Returns:
        One report per pass.

    Raises:
        Refused: a pass failed; the graph may be half rewritten.
    """
    reports: list[PassReport] = []
    with remembered() as memory:
        pipeline = _Pipeline(graph_module, inputs, memory, check)
        for step in passes:
            reports.append(pipeline.run(step))
        pipeline.verify()
    return reports


@dataclass
class _Pipeline:
    graph_module: fx.GraphModule
    inputs: Inputs
    memory: Memory
    check: Check | None
    unchecked: str = ""

    def run(self, step: Pass) -> PassReport:
        start = time.perf_counter()
        before = self.memory.program
        try:
            outcome = step.run(self.graph_module, self.inputs)
            if outcome.modified:
                self.graph_module.graph.lint()
                self.graph_module.delete_all_unused_submodules()
                self.graph_module.recompile()
        except Exception as error:
            self.verify()  # perhaps an earlier pass is at fault
            raise Refused(f"{step.name} failed on it ({reason_of(error)}); {REPORT_IT}") from error
        if self.memory.program is not None and self.memory.program is not before:
            self.verify(self.memory.program.result)
        if outcome.modified:
            self.memory.numbers_changed()
            self.unchecked = step.name
        seconds = time.perf_counter() - start
        return PassReport(step.name, outcome.modified, seconds, outcome.detail, outcome.kept, outcome.regions)

    def verify(self, result: Any = None) -> None:
        """Check what was done since the last check, by a result seen meanwhile or a new one."""
        if self.check is not None and self.unchecked:
            seen = result is not None
            self.check(
                self.unchecked, lambda: result if seen else interpret(self.graph_module, self.inputs[0])
            )
        self.unchecked = ""
