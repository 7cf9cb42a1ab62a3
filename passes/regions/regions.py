"""Hand connected parts of a graph over to something that computes them faster."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.fx.passes.utils.fuser_utils import erase_nodes, fuse_as_graphmodule

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import CONTRACTIONS, layer_of
from sparsefx.passes.graph.program import Program
from sparsefx.passes.manager.pipeline import Outcome, RegionReport
from sparsefx.passes.regions.partition import partition
from sparsefx.passes.regions.stable_sort import stable_sort
from sparsefx.passes.running.interpreter import Interpreter
from sparsefx.passes.running.timing import medians
from sparsefx.passes.running.untouched import untouched


@dataclass(frozen=True)
class Part:
    """A connected part of a graph.

    Attributes:
        nodes: its nodes, in order.
        inputs: the nodes outside that it reads.
        outputs: its nodes that are read outside.
        module: the part as a graph of its own.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    module: fx.GraphModule


@dataclass(frozen=True)
class Built:
    """What becomes of a part.

    Attributes:
        module: what computes it; None to leave it as it is.
        report: for the user.
        without: nodes to leave as they are while what is left of the part is tried again.
    """

    module: nn.Module | None
    report: RegionReport
    without: frozenset[fx.Node] = frozenset()


class Backend(Protocol):
    """What computes parts of a graph: nodes of one of its kinds, one kind after the other."""

    @property
    def kinds(self) -> Sequence[str]:
        """Names that it tells parts apart by."""
        ...

    @property
    def measured(self) -> bool:
        """Whether it takes only what is faster on this machine."""
        ...

    def supported(self, kind: str, graph_module: fx.GraphModule, program: Program) -> set[fx.Node]:
        """The nodes that can belong to a part of this kind."""
        ...

    def left_out(self, graph_module: fx.GraphModule, program: Program) -> Mapping[str, str]:
        """The names of layers that can belong to no part, each with the reason."""
        ...

    def build(
        self,
        kind: str,
        graph_module: fx.GraphModule,
        part: Part,
        program: Program,
        values: Mapping[fx.Node, Any],
    ) -> Built | None:
        """What becomes of a part, given an example value of every node; None if nothing in it matters."""
        ...


@dataclass(frozen=True)
class Regions:
    """Replace parts of the graph by modules of a backend.

    Attributes:
        backend: what computes them. If it measures, none is replaced where the whole graph is not faster
            for it: what is faster alone may not be so among others, which use the same caches.
    """

    backend: Backend
    name = "regions"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the graph in place. Runs after all passes that look into layers."""
        before = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
        reports: list[RegionReport] = []
        left: dict[str, str] = {}
        for kind in self.backend.kinds:
            if _writes_unseen(graph_module, analyses.program):
                why = "the graph writes in place to what other nodes read"
                left |= dict.fromkeys(_layer_names(graph_module), why)
                break
            left |= self.backend.left_out(graph_module, analyses.program)
            replacements, of_kind = self._build(kind, graph_module, analyses)
            reports += of_kind
            _replace(graph_module, replacements)
        detail = _detail(reports)
        if self.backend.measured and any(report.taken for report in reports):
            new, old = _seconds(graph_module, before, analyses.inputs[0])
            detail += f"; dense {1e3 * old:.2f} ms, now {1e3 * new:.2f} ms"
            if new >= old:
                graph_module.graph = before.graph
                graph_module.delete_all_unused_submodules()
                reports = [replace(report, taken=False) for report in reports]
                detail += ", so none is taken"
        taken = any(report.taken for report in reports)
        reports += [RegionReport((name,), None, None, False, reason) for name, reason in left.items()]
        return Outcome(taken, detail, regions=tuple(reports))

    def _build(
        self, kind: str, graph_module: fx.GraphModule, analyses: Analyses
    ) -> tuple[list[tuple[Part, nn.Module]], list[RegionReport]]:
        """What replaces the parts of a kind; a part that is left may be tried again without some nodes."""
        program, values = analyses.program, _values(graph_module, analyses.inputs[0])
        replacements: list[tuple[Part, nn.Module]] = []
        reports: list[RegionReport] = []
        waiting = _partitions(graph_module, self.backend.supported(kind, graph_module, program))
        while waiting:  # what is tried again is smaller each time
            part = _part(graph_module, waiting.pop(0))
            if not part.outputs:
                continue  # nothing reads it
            built = self.backend.build(kind, graph_module, part, program, values)
            reports += [built.report] if built else []
            if built and built.module is not None:
                replacements.append((part, built.module))
            elif built and built.without & {*part.nodes}:
                waiting += _partitions(graph_module, {*part.nodes} - built.without)
        return replacements, reports


def _layer_names(graph_module: fx.GraphModule) -> list[str]:
    nodes = graph_module.graph.nodes
    return [str(node.target) for node in nodes if isinstance(layer_of(graph_module, node), CONTRACTIONS)]


def _detail(reports: Sequence[RegionReport]) -> str:
    taken = [report for report in reports if report.taken]
    layers = sum(len(report.layers) for report in taken)
    return f"{len(taken)} of {len(reports)} regions, {layers} layers"


def _seconds(
    graph_module: fx.GraphModule, other: fx.GraphModule, example: tuple[Any, ...]
) -> tuple[float, float]:
    """What two graphs of the same layers take."""
    graph_module.recompile()
    with untouched(graph_module, example) as copies:
        return medians(lambda: graph_module(*copies), lambda: other(*copies))


def _partitions(graph_module: fx.GraphModule, supported: set[fx.Node]) -> list[tuple[fx.Node, ...]]:
    """The largest connected parts whose nodes are all supported, each with its nodes in the graph's order.

    Nodes that share nothing, which may have other sizes, are apart.
    """
    return partition({node: node.all_input_nodes for node in graph_module.graph.nodes}, supported)


def _writes_unseen(graph_module: fx.GraphModule, program: Program) -> bool:
    """Whether a node reads something else than what its sources made, since another one wrote there.

    The edges do not tell what has to come before what, then, and no node may move.
    """
    for node in graph_module.graph.nodes:
        made = {id(value) for source in node.all_input_nodes for value in program.node_values[source]}
        if any(id(value) not in made for value in program.node_inputs[node]):
            return True
    return False


def _part(graph_module: fx.GraphModule, nodes: tuple[fx.Node, ...]) -> Part:
    module, inputs, outputs = fuse_as_graphmodule(graph_module, list(nodes), "part")
    return Part(nodes, inputs, outputs, module)


@torch.no_grad()
def _values(graph_module: fx.GraphModule, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
    """What every node gives."""
    with untouched(graph_module, inputs) as copies:
        interpreter = Interpreter(graph_module, garbage_collect_values=False)
        interpreter.run(*copies)
    return interpreter.env


def _replace(graph_module: fx.GraphModule, replacements: Sequence[tuple[Part, nn.Module]]) -> None:
    """Put modules in the places of parts."""
    graph = graph_module.graph
    results: dict[fx.Node, fx.Node] = {}
    for part, module in replacements:
        name = free_name(graph_module)
        graph_module.add_submodule(name, module)
        with graph.inserting_after(part.nodes[-1]):
            call = graph.call_module(name, tuple(results.get(node, node) for node in part.inputs))
        with graph.inserting_after(call):
            for index, node in enumerate(part.outputs):
                single = len(part.outputs) == 1
                results[node] = call if single else graph.call_function(operator.getitem, (call, index))
                node.replace_all_uses_with(results[node])
        erase_nodes(graph_module, list(part.nodes))
    stable_sort(graph)  # what reads a part may have stood before its last node


def free_name(model: nn.Module) -> str:
    """A name that no attribute of a model has, for a region."""
    number = 0
    while hasattr(model, f"region_{number}"):  # at most once an attribute that there is
        number += 1
    return f"region_{number}"
