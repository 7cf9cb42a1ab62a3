"""A pipeline of passes: each takes a valid graph, leaves a valid graph, and reports what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

from torch import fx

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.capture.module_tracer import reason_of
from sparsefx.passes.running.compare import interpret
from sparsefx.passes.running.examples import Inputs

REPORT_IT = "please report this with the model's code"


@dataclass(frozen=True)
class KeptChannels:
    """Empty channels of a layer that were kept.

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
        dense: seconds of the graph's own nodes on the example inputs; None if not measured.
        sparse: seconds of the backend on the example inputs; None if not measured.
        taken: whether the backend computes them now.
        reason: why the backend cannot compute them; empty if it can.
    """

    layers: tuple[str, ...]
    dense: float | None
    sparse: float | None
    taken: bool
    reason: str = ""

    def __str__(self) -> str:
        """What computes the layers, and why: one line of a report."""
        first, *others = self.layers
        names = f"{first} to {others[-1]}" if others else first
        kernels = "sparse" if self.taken else "dense"
        why = self.reason
        if not why and self.dense is not None and self.sparse is not None:
            why = f"dense {1e3 * self.dense:.2f} ms, sparse {1e3 * self.sparse:.2f} ms"
        return f"{names}: {kernels} kernels" + (f" ({why})" if why else "")


@dataclass(frozen=True)
class Outcome:
    """What a pass did.

    Attributes:
        modified: whether it changed anything. If it is run again at once, it changes nothing.
        detail: one line for the report.
        kept: the empty channels that stay.
        regions: the parts of the graph that a backend can compute.
    """

    modified: bool
    detail: str = ""
    kept: tuple[KeptChannels, ...] = ()
    regions: tuple[RegionReport, ...] = ()


@dataclass(frozen=True)
class PassReport:
    """One row of a pipeline's report: a pass, the seconds that it took, and what it did."""

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
    """A graph is not used; the message is the reason."""


class Pass(Protocol):
    """A graph rewrite: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """The name of the pass in reports."""
        ...

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the module in place, without changing its function on any input."""
        ...


Check = Callable[[str, Callable[[], Any]], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, as data. A pipeline prints as text, can be cut after any pass, and runs on a graph.

    Attributes:
        passes: the passes, in the order in which they run.

    Example:
        >>> from sparsefx.passes.rewrites.gather import Gather
        >>> from sparsefx.passes.rewrites.shrink import Shrink
        >>> print(Pipeline((Shrink(align=8), Gather())))
        shrink(align=8, round_groups='never')
        gather(when='auto')
        >>> Pipeline((Shrink(), Gather())).until("shrink").names
        ('shrink',)
    """

    passes: tuple[Pass, ...]

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __str__(self) -> str:
        return "\n".join(map(_as_text, self.passes))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the passes."""
        return tuple(step.name for step in self.passes)

    def until(self, name: str) -> Pipeline:
        """The passes up to and including the named one.

        Raises:
            ValueError: no pass has this name.
        """
        return Pipeline(self.passes[: self._place(name) + 1])

    def without(self, name: str) -> Pipeline:
        """All passes but the named one.

        Raises:
            ValueError: no pass has this name.
        """
        place = self._place(name)
        return Pipeline(self.passes[:place] + self.passes[place + 1 :])

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"no pass is called {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    def run(
        self, graph_module: fx.GraphModule, inputs: Inputs, check: Check | None = None
    ) -> list[PassReport]:
        """Run the passes on one module, in place.

        Args:
            graph_module: the module to rewrite, in evaluation mode.
            inputs: positional arguments that its forward accepts, at one or more sizes.
            check: called with the name of a pass that changed the module and a function. The function
                returns (or raises) what the module now returns for the first of the inputs. Mostly the
                next recording has that result; only the last pass needs a run of its own.

        Returns:
            One report per pass.

        Raises:
            Refused: a pass failed; the graph may be half rewritten.
        """
        run = _Run(graph_module, Analyses(graph_module, inputs), check)
        reports = [run.step(step) for step in self.passes]
        run.verify()
        return reports


def _as_text(step: Pass) -> str:
    """A pass by its name, with its options in brackets."""
    names: list[str] = [field.name for field in fields(step)] if is_dataclass(step) else []
    options = [f"{name}={getattr(step, name)!r}" for name in names]
    return f"{step.name}({', '.join(options)})" if options else step.name


@dataclass
class _Run:
    graph_module: fx.GraphModule
    analyses: Analyses
    check: Check | None
    unchecked: str = ""

    def step(self, step: Pass) -> PassReport:
        start = time.perf_counter()
        before = self.analyses.last_recording
        try:
            outcome = step.run(self.graph_module, self.analyses)
            if outcome.modified:
                self.graph_module.graph.lint()
                self.graph_module.delete_all_unused_submodules()
                self.graph_module.recompile()
        except Exception as error:
            self.verify()  # perhaps an earlier pass is at fault
            raise Refused(f"{step.name} failed on it ({reason_of(error)}); {REPORT_IT}") from error
        recording = self.analyses.last_recording
        if recording is not None and recording is not before:
            self.verify(recording.result)
        if outcome.modified:
            self.analyses.invalidate()
            self.unchecked = step.name
        seconds = time.perf_counter() - start
        return PassReport(step.name, outcome.modified, seconds, outcome.detail, outcome.kept, outcome.regions)

    def verify(self, result: Any = None) -> None:
        """Check what was done since the last check, by a result seen meanwhile or a new one."""
        if self.check is not None and self.unchecked:
            rerun = lambda: interpret(self.graph_module, self.analyses.inputs[0])  # noqa: E731
            self.check(self.unchecked, rerun if result is None else lambda: result)
        self.unchecked = ""
