"""A ``torch.fx.GraphModule`` that keeps the whole model: every module, and a graph for each mode.

Tracing bakes ``self.training`` into the graph (functional dropout, auxiliary heads, early returns),
and a plain ``GraphModule`` keeps only the modules its graph calls. This one holds the graph of the
training mode and that of the evaluation mode side by side, runs the one that ``self.training``
asks for, and keeps all of the model's modules, so its ``state_dict`` is the model's own.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from sparsefx.passes.graph.pickled_graph import NodeState, graph_of, graph_state

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
        held_back: for each mode, the modules that the model's own ``train`` leaves in the other one (a
            frozen BatchNorm, say); ``train`` does the same here.
    """

    _mode_graphs: dict[bool, fx.Graph]
    _mode_codes: dict[bool, str]
    _held_back: Mapping[bool, Sequence[str]] = {True: (), False: ()}

    def __init__(
        self,
        root: nn.Module,
        train_graph: fx.Graph,
        eval_graph: fx.Graph,
        held_back: Mapping[bool, Sequence[str]] | None = None,
    ) -> None:
        self.__dict__["_mode_graphs"] = {True: train_graph, False: eval_graph}
        super().__init__(nn.Module(), fx.Graph(), type(root).__name__)
        self.__dict__.update(_module_state(root))
        if held_back is not None:
            self._held_back = held_back
        self._load_state_dict_pre_hooks = _rebound(self._load_state_dict_pre_hooks, root, self)
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

    @property
    def code(self) -> str:
        """The Python code generated from the graph of the present mode."""
        return self._mode_codes[self.training]

    def mode_graph(self, training: bool) -> fx.Graph:
        """The graph of one mode."""
        return self._mode_graphs[training]

    def recompile(self) -> Any:
        """Generate the forward functions again after a graph was edited."""
        forwards: dict[bool, Callable[..., Any]] = {}
        self.__dict__["_mode_codes"] = codes = {}
        code = None
        for mode in (not self.training, self.training):
            self.__dict__["_graph"] = self._mode_graphs[mode]
            code = super().recompile()
            forwards[mode], codes[mode] = type(self).forward, self._code
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
        for name in self._held_back[mode]:
            self.get_submodule(name).training = not mode
        self.__dict__["_graph"] = self.graph
        return self

    def __copy__(self) -> TwoModeGraphModule:
        return TwoModeGraphModule(self, *self._copied_graphs())

    def __deepcopy__(self, memo: dict[int, Any]) -> TwoModeGraphModule:
        result = TwoModeGraphModule(_shell(self._class_name), *self._copied_graphs())
        memo[id(self)] = result  # first, because a hook may lead back to this module
        result.__dict__.update(copy.deepcopy(_module_state(self), memo))
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        train_graph, eval_graph = self._mode_graphs[True], self._mode_graphs[False]
        states = [graph_state(train_graph), None if eval_graph is train_graph else graph_state(eval_graph)]
        return _blank, (self._class_name,), (_module_state(self), states)

    def __setstate__(self, state: tuple[dict[str, Any], list[Any]]) -> None:
        modules, (train_state, eval_state) = state
        self.__dict__.update(modules)
        train_graph = graph_of(train_state)
        eval_graph = train_graph if eval_state is None else graph_of(eval_state)
        self.__dict__["_mode_graphs"] = {True: train_graph, False: eval_graph}
        for graph in (train_graph, eval_graph):
            graph.owning_module = self
        self.recompile()

    def _copied_graphs(self) -> tuple[fx.Graph, fx.Graph]:
        train_graph, eval_graph = self._mode_graphs[True], self._mode_graphs[False]
        copied = copy.deepcopy(train_graph)
        return copied, copied if train_graph is eval_graph else copy.deepcopy(eval_graph)

    @property
    def _class_name(self) -> str:
        return type(self).__name__


def _blank(name: str) -> TwoModeGraphModule:
    return TwoModeGraphModule(_shell(name), fx.Graph(), fx.Graph())


class CompiledGraphModule(fx.GraphModule):
    """A ``GraphModule`` whose pickle holds its graph (:mod:`sparsefx.passes.graph.pickled_graph`).

    Unlike torch's, a deep copy has all its attributes: a parent that stays Python may read them.
    """

    def __copy__(self) -> CompiledGraphModule:
        return CompiledGraphModule(self, self.graph, type(self).__name__)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledGraphModule:
        result = _blank_compiled(type(self).__name__)
        memo[id(self)] = result  # first, because a hook may lead back to this module
        result.__dict__.update(copy.deepcopy({**_module_state(self), "meta": self.meta}, memo))
        result.graph = copy.deepcopy(self.graph)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        state = {**_module_state(self), "meta": self.meta}
        return _blank_compiled, (type(self).__name__,), (state, graph_state(self.graph))

    def __setstate__(self, state: tuple[dict[str, Any], list[NodeState]]) -> None:
        modules, nodes = state
        self.__dict__.update(modules)
        self.graph = graph_of(nodes)


def _blank_compiled(name: str) -> CompiledGraphModule:
    return CompiledGraphModule(_shell(name), fx.Graph(), name)


def _shell(name: str) -> nn.Module:
    """A module that has nothing but a class name."""
    shell: nn.Module = type(name, (nn.Module,), {})()
    return shell


def _rebound(hooks: dict[int, Any], old: nn.Module, new: nn.Module) -> dict[int, Any]:
    """The hooks, those that torch calls with the module ``old`` now called with ``new``."""
    rebound: OrderedDict[int, Any] = OrderedDict()
    for key, hook in hooks.items():
        bound = getattr(hook, "with_module", False) and hook.module() is old
        rebound[key] = copy.copy(hook) if bound else hook
        if bound:
            rebound[key].module = weakref.ref(new)
    return rebound


def _module_state(module: nn.Module) -> dict[str, Any]:
    """What a module holds as an ``nn.Module``, without what makes it a ``GraphModule``."""
    if not isinstance(module, fx.GraphModule):
        return dict(module.__dict__)
    graph_only = set(fx.GraphModule(nn.Module(), fx.Graph()).__dict__) - _PLAIN_MODULE_STATE
    graph_only |= {"_mode_graphs", "_mode_codes"}
    return {key: value for key, value in module.__dict__.items() if key not in graph_only}
