"""A model whose graphs call modules that stand for parts of it, and the graphs as they were before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from sparsefx.passes.graph.graph_module import TwoModeGraphModule
from sparsefx.passes.graph.pickled_graph import graph_of, graph_state

_RECORD = "_plain_graphs"


class PlainGraphs:
    """The graphs of both modes, as they can be copied and pickled.

    Args:
        train_graph: of training.
        eval_graph: of evaluation; it may be the same one.
        added: names of the modules that stand for parts of the graphs now.
        regions: what was replaced, and what was not.
    """

    def __init__(
        self,
        train_graph: fx.Graph,
        eval_graph: fx.Graph,
        added: Sequence[str] = (),
        regions: Sequence[Any] = (),
    ) -> None:
        self.train_graph, self.eval_graph = train_graph, eval_graph
        self.added, self.regions = tuple(added), tuple(regions)

    def copied(self) -> tuple[fx.Graph, fx.Graph]:
        """Copies of both, that may be changed."""
        train_graph = copy.deepcopy(self.train_graph)
        is_one = self.eval_graph is self.train_graph
        return train_graph, train_graph if is_one else copy.deepcopy(self.eval_graph)

    def __reduce__(self) -> tuple[Any, ...]:
        is_one = self.eval_graph is self.train_graph
        states = graph_state(self.train_graph), None if is_one else graph_state(self.eval_graph)
        return _of_states, (*states, self.added, self.regions)

    def __deepcopy__(self, memo: dict[int, Any]) -> PlainGraphs:
        return PlainGraphs(*self.copied(), self.added, self.regions)


def _of_states(train_state: Any, eval_state: Any, *rest: Any) -> PlainGraphs:
    train_graph = graph_of(train_state)
    return PlainGraphs(train_graph, train_graph if eval_state is None else graph_of(eval_state), *rest)


def keep_plain(model: nn.Module, graphs: PlainGraphs) -> None:
    """Note what the graphs of a model were before parts of it were replaced."""
    model.__dict__[_RECORD] = graphs


def plain_graphs_of(model: nn.Module) -> PlainGraphs | None:
    """What was noted of a model; None where nothing of it was replaced."""
    graphs: PlainGraphs | None = model.__dict__.get(_RECORD)
    return graphs


def plain(model: nn.Module) -> nn.Module:
    """The model as it was before parts of it were replaced, with the same modules; itself if none was."""
    graphs = plain_graphs_of(model)
    if graphs is None:
        return model
    result = TwoModeGraphModule(model, *graphs.copied(), model.__dict__.get("_held_back"))
    del result.__dict__[_RECORD]
    result._modules = {name: module for name, module in model._modules.items() if name not in graphs.added}
    return result
