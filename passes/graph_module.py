"""A ``torch.fx.GraphModule`` that keeps the whole model: every module, and a graph for each mode.

Tracing bakes ``self.training`` into the graph (functional dropout, auxiliary heads, early returns),
and a plain ``GraphModule`` keeps only the modules its graph calls. This one holds the graph of the
training mode and that of the evaluation mode side by side, runs the one that ``self.training``
asks for, and keeps all of the model's modules, so its ``state_dict`` is the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_PLAIN_MODULE_STATE = frozenset(nn.Module().__dict__)


class TwoModeGraphModule(fx.GraphModule):
    """One set of modules, one graph for training and one for evaluation.

    ``graph`` and ``code`` are those of the present mode. Where the modes do not differ, both are
    the same graph object.

    Args:
        root: the model whose modules, parameters, buffers, hooks and attributes are taken over (not
            copied).
        train_graph: the graph run while ``training`` is True.
        eval_graph: the graph run while ``training`` is False.
    """

    _mode_graphs: dict[bool, fx.Graph]

    def __init__(self, root: nn.Module, train_graph: fx.Graph, eval_graph: fx.Graph) -> None:
        self.__dict__["_mode_graphs"] = {True: train_graph, False: eval_graph}
        super().__init__(nn.Module(), fx.Graph(), type(root).__name__)
        self.__dict__.update(_module_state(root))
        for graph in (train_graph, eval_graph):
            graph.owning_module = self
        self.recompile()

    @property
    def graph(self) -> fx.Graph:
        """The graph of the present mode."""
        return self._mode_graphs[self.training]

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        if not hasattr(self, "_non_persistent_buffers_set") or not len(graph.nodes):
            self.__dict__["_graph"] = graph  # the base constructor's placeholder
            return
        self._mode_graphs[self.training] = graph
        graph.owning_module = self
        self.recompile()

    def mode_graph(self, training: bool) -> fx.Graph:
        """The graph of one mode."""
        return self._mode_graphs[training]

    def recompile(self) -> Any:
        """Generate the forward functions again after a graph was edited."""
        forwards: dict[bool, Callable[..., Any]] = {}
        code = None
        for mode in (not self.training, self.training):
            self.__dict__["_graph"] = self._mode_graphs[mode]
            code = super().recompile()
            forwards[mode] = type(self).forward
        train_forward, eval_forward = forwards[True], forwards[False]

        # The choice is made in forward, not by swapping it in train(): torch.compile guards on
        # self.training and keeps one compiled version a mode.
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.training:
                return train_forward(self, *args, **kwargs)
            return eval_forward(self, *args, **kwargs)

        type(self).forward = forward
        return code

    def train(self, mode: bool = True) -> TwoModeGraphModule:
        """Set the mode of the model and of its modules, and with it the graph that runs."""
        super().train(mode)
        self.__dict__["_graph"] = self._mode_graphs[mode]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TwoModeGraphModule:
        root = nn.Module()
        root.__dict__.update(copy.deepcopy(_module_state(self), memo))
        root.__class__ = type(self._class_name, (nn.Module,), {})
        train_graph = copy.deepcopy(self._mode_graphs[True])
        same = self._mode_graphs[True] is self._mode_graphs[False]
        eval_graph = train_graph if same else copy.deepcopy(self._mode_graphs[False])
        result = TwoModeGraphModule(root, train_graph, eval_graph)
        memo[id(self)] = result
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        # fx pickles a graph as code and traces it again; the modules are pickled once, being the
        # same objects in each of the three.
        by_mode = [fx.GraphModule(self, self._mode_graphs[mode]) for mode in (True, False)]
        return _rebuild, (self._class_name, _module_state(self), *by_mode)

    @property
    def _class_name(self) -> str:
        return type(self).__name__


def _rebuild(
    name: str, state: dict[str, Any], train: fx.GraphModule, evaluation: fx.GraphModule
) -> TwoModeGraphModule:
    root = nn.Module()
    root.__dict__.update(state)
    root.__class__ = type(name, (nn.Module,), {})
    same = train.code == evaluation.code
    return TwoModeGraphModule(root, train.graph, train.graph if same else evaluation.graph)


def _module_state(module: nn.Module) -> dict[str, Any]:
    """What a module holds as an ``nn.Module``, without what makes it a ``GraphModule``."""
    if not isinstance(module, fx.GraphModule):
        return dict(module.__dict__)
    graph_only = set(fx.GraphModule(nn.Module(), fx.Graph()).__dict__) - _PLAIN_MODULE_STATE
    graph_only |= {"_mode_graphs"}
    return {key: value for key, value in module.__dict__.items() if key not in graph_only}
