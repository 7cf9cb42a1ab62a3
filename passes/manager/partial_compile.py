"""Rewrite a model as one graph or, if its forward cannot be traced, each part that can be.

A forward that branches on data (a detector's proposals, a language model's cache) stays Python, and
so does a module that a graph has to call as it is. The modules that they call are compiled separately,
the largest first, with their inputs and outputs kept. Every graph is run at sizes that it was not made from.
If it does not compute what its module computes, it is made again with that size among its examples.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsefx.passes.capture.capture import Capture, capture
from sparsefx.passes.capture.module_tracer import SCRIPTED, reason_of
from sparsefx.passes.capture.size_guards import InputSize, SizeError, guard_sizes, input_sizes
from sparsefx.passes.graph.graph_module import CompiledGraphModule, TwoModeGraphModule
from sparsefx.passes.graph.modes import follow_mode, split_modes
from sparsefx.passes.graph.origins import duplicate, origin_of
from sparsefx.passes.manager.part_calls import Call, calls_of_parts, trials_of
from sparsefx.passes.manager.pipeline import PassReport, Refused
from sparsefx.passes.running.arguments import args_and_kwargs
from sparsefx.passes.running.compare import gives, run
from sparsefx.passes.running.deep_copy import deep_copy
from sparsefx.passes.running.examples import Example, Examples, Inputs, bind, graph_inputs
from sparsefx.passes.running.leaves import tensors_in
from sparsefx.passes.running.trials import Check, Trials
from sparsefx.passes.running.untouched import same_buffers

Rewrite = Callable[[fx.GraphModule, Inputs], list[PassReport]]
"""Rewrites a graph in place; raises :class:`Refused` where the result cannot be used."""


@dataclass
class Compiled:
    """A model with graphs in the place of what could be captured.

    Attributes:
        model: the rewritten model: a graph module where its own forward traces.
        passes: what each pass did; the name of a part stands before that of the pass.
        graphs: the modules that became graphs; ``""`` is the model itself.
        opaque: the modules that stay Python, with the reason.
        as_in_evaluation: the graphs that also in training do something that only evaluation did, with
            what differs.
        sizes: what the arguments of each graph were tried at.
    """

    model: nn.Module
    passes: list[PassReport] = field(default_factory=list)
    graphs: list[str] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    as_in_evaluation: dict[str, str] = field(default_factory=dict)
    sizes: list[InputSize] = field(default_factory=list)

    def copy(self) -> Compiled:
        """The same, with lists of its own."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return Compiled(**{name: copy.copy(v) if name != "model" else v for name, v in values.items()})


_TRIES = 3  # times that a graph is made with more examples


def compile_model(model: nn.Module, trials: Trials, rewrite: Rewrite, *, trains: bool = False) -> Compiled:
    """Rewrite all of a model that can be captured.

    Args:
        model: a model in evaluation mode; it is not changed.
        trials: positional arguments of its forward, at one or more sizes.
        rewrite: what to do with each graph.
        trains: keep what acts in training only, such as dropout: each graph becomes a
            :class:`TwoModeGraphModule`.
    """
    for _ in range(_TRIES):
        compiled = _Compiler(rewrite, trials, trains).compile(duplicate(model, share=True))
        if "" in compiled.graphs or not compiled.graphs:
            return compiled
        wrong = _wrong_at(trials, functools.partial(run, compiled.model))
        if wrong is None:
            return compiled
        trials = trials.also_at(wrong)
    return Compiled(model, opaque={"": "its parts return something else than its forward " + _sizes(wrong)})


class _Compiler:
    def __init__(self, rewrite: Rewrite, trials: Trials, trains: bool) -> None:
        self.rewrite, self.trials, self.trains = rewrite, trials, trains
        self._done: dict[nn.Module, nn.Module | None] = {}

    def compile(self, model: nn.Module) -> Compiled:
        self.compiled = Compiled(model)
        example = self.trials.inputs[0]
        expected = run(model, example)
        graph = self._whole(model)
        if graph is not None and gives(lambda: run(graph, example), expected):
            self.compiled.model = graph
            return self.compiled
        if graph is not None:
            self.compiled = Compiled(model, opaque={"": "its graph returns something else than its forward"})
        fits = lambda: gives(lambda: run(model, example), expected)  # noqa: E731
        self._compile_children(model, _Place("", "", calls_of_parts(model, self.trials.inputs), fits))
        return self.compiled

    def _whole(self, model: nn.Module) -> fx.GraphModule | None:
        """The model itself as a rewritten graph; None if it stays Python."""
        try:
            called = _in_mode(model, False)
            trials = self.trials.renamed(lambda values: bind(called, *args_and_kwargs(values)))
        except (TypeError, ValueError) as error:  # a pre-hook or a decorator takes other arguments
            reason = _stays_python(model) or f"its arguments have no names ({reason_of(error)})"
            self.compiled.opaque[""] = reason
            return None
        return self._graph_of(model, "", trials)

    def _graph_of(self, module: nn.Module, name: str, trials: Trials) -> fx.GraphModule | None:
        """A module as a rewritten graph that holds at all sizes; None if it stays Python."""
        before = self.compiled
        for _ in range(_TRIES):
            self.compiled = before.copy()
            graph = self._made_along(module, name, trials)
            if graph is None:
                return None
            wrong = _wrong_at(trials, functools.partial(_run_graph, graph))
            if wrong is None:
                return graph
            trials = trials.also_at(wrong)
        self.compiled = before
        self.compiled.opaque[name] = "its graph returns something else than its forward " + _sizes(wrong)
        return None

    def _made_along(self, module: nn.Module, name: str, trials: Trials) -> fx.GraphModule | None:
        """A module as a rewritten graph, made along calls; None if it stays Python."""
        examples: Examples = trials.inputs
        reason = _stays_python(module)
        if reason is not None:
            self.compiled.opaque[name] = reason
            return None
        # a copy, so that nothing is lost if its graph cannot be used
        own = _in_mode(duplicate(module), False)
        with same_buffers(own, examples) as copies:
            captured = capture(own, copies, keeps_idle=self.trains)
        if captured.graph is None:
            self.compiled.opaque[name] = captured.opaque[""]
            return None
        graph = _graph_module(own, captured, whole=name == "")
        inputs = graph_inputs(captured.graph, examples)
        held_back, differs = self._follow_mode(graph, module, examples, captured)
        try:
            passes = self.rewrite(graph, inputs)
        except Refused as refusal:
            self.compiled.opaque[name] = str(refusal)
            return None
        _share_unchanged(graph, module)
        if differs:
            self.compiled.as_in_evaluation[name] = differs
        guard_sizes(graph.graph, trials)
        graph.recompile()
        self.compiled.sizes += [size.inside(name) for size in input_sizes(trials)]
        self.compiled.graphs.append(name)
        self.compiled.passes += [step.inside(name) for step in passes]
        left = {path: reason for path, reason in captured.opaque.items() if _has(graph, path)}
        if left:
            place = _Place(name, "", calls_of_parts(graph, inputs), _fits(graph, inputs[0]))
            for path, reason in left.items():
                self.compiled.opaque[_join(name, path)] = reason
                self._compile_children(graph.get_submodule(path), replace(place, path=path))
        return split_modes(graph, held_back) if self.trains else graph

    def _follow_mode(
        self, graph: fx.GraphModule, module: nn.Module, examples: Examples, evaluation: Capture
    ) -> tuple[dict[bool, list[str]], str | None]:
        """Let a graph follow the mode; what ``train`` leaves in evaluation, and what else differs."""
        if not self.trains:
            return {}, None
        training = deep_copy(module).train()
        held_back = [path for path, part in training.named_modules() if not part.training]
        root = _in_mode(training, True)
        with same_buffers(root, examples) as copies:
            captured = capture(root, copies, keeps_idle=True, opaque=evaluation.opaque)
        traced = captured.graph
        differs = captured.opaque[""] if traced is None else follow_mode(graph, traced)
        return {True: held_back, False: []}, differs

    def _compile_children(self, parent: nn.Module, place: _Place) -> None:
        for key, child in parent.named_children():
            inner = replace(place, path=_join(place.path, key))
            if child not in self._done:
                self._done[child] = self._part(parent, key, child, inner)
            part = self._done[child]
            if part is None:
                self._compile_children(child, inner)
            else:
                parent._modules[key] = part

    def _part(self, parent: nn.Module, key: str, child: nn.Module, place: _Place) -> nn.Module | None:
        """A module as a graph, if the model around it still computes the same with it."""
        if next(child.children(), None) is None:
            return None
        trials = trials_of(child, place.calls.get(place.path, ()))
        if trials is None:
            return None
        before = self.compiled.copy()
        part = self._graph_of(child, place.name, trials)
        if part is None:
            return None
        parent._modules[key] = part
        if place.fits():
            return part
        parent._modules[key] = child
        self.compiled = before
        self.compiled.opaque[place.name] = "the module that calls it needs more of it than its result"
        return None


@dataclass(frozen=True)
class _Place:
    """Where in a model parts are looked for.

    Attributes:
        above: the compiled module around it; ``""`` for the model.
        path: the module, seen from there.
        calls: the arguments of each module's calls, by such a path.
        fits: whether the module above computes what it did.
    """

    above: str
    path: str
    calls: Mapping[str, Sequence[Call]]
    fits: Callable[[], bool]

    @property
    def name(self) -> str:
        """The name in the whole model."""
        return _join(self.above, self.path)


def _stays_python(module: nn.Module) -> str | None:
    """Why there is no point in tracing a module; None if there is."""
    if isinstance(module, torch.jit.ScriptModule):
        return SCRIPTED
    return "a forward pre-hook changes its arguments" if module._forward_pre_hooks else None


def _fits(model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], bool]:
    expected = run(model, inputs)
    return lambda: gives(lambda: run(model, inputs), expected)


def _wrong_at(trials: Trials, outputs: Callable[[Any], Any]) -> Any:
    """The arguments at which something else is computed than was noted; None if there are none.

    A ``ValueError`` refuses a size, as sparse kernels do with one that is too small: it is not wrong.
    """

    def holds(check: Check) -> bool:
        refused = False

        def attempt() -> Any:
            nonlocal refused
            try:
                return outputs(check.inputs)
            except ValueError as error:
                refused = not isinstance(error, SizeError)
                raise

        return gives(attempt, check.outputs) or refused

    return next((check.inputs for check in trials.checks if not holds(check)), None)


def _run_graph(graph: fx.GraphModule, example: Example) -> Any:
    (inputs,) = graph_inputs(graph.graph, [example])
    return run(graph, inputs)


def _sizes(inputs: Any) -> str:
    return "at the sizes " + ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs))


def _in_mode(model: nn.Module, training: bool) -> nn.Module:
    """A model as the plain graph module of one of its modes, if it has a graph for each."""
    if not isinstance(model, TwoModeGraphModule):
        return model
    return fx.GraphModule(model, model.mode_graph(training))


def _graph_module(model: nn.Module, captured: Capture, whole: bool) -> fx.GraphModule:
    """A graph over a model's modules; a part keeps what else its parent may read of it."""
    assert captured.graph is not None
    graph_module = CompiledGraphModule(model, captured.graph, type(model).__name__).eval()
    kept = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    for hooks in kept:
        graph_module.__dict__[hooks] = copy.copy(model.__dict__[hooks])
    if not whole:
        plain = {key: value for key, value in model.__dict__.items() if not isinstance(value, Tensor)}
        for key, value in ((key, value) for key, value in plain.items() if key not in captured.caches):
            graph_module.__dict__.setdefault(key, value)
    return graph_module


def _share_unchanged(graph: nn.Module, module: nn.Module) -> None:
    """Give parameters that no pass changed back as they were: others may hold them too."""
    originals = dict(module.named_parameters(remove_duplicate=False))
    held = list(graph.named_parameters(remove_duplicate=False))
    unchanged = {
        parameter: originals[name]
        for name, parameter in held
        if name in originals and _is_same(parameter, originals[name])
    }
    for name, parameter in held:  # under names that a pass gave it too
        if parameter in unchanged:
            path, _, attribute = name.rpartition(".")
            graph.get_submodule(path)._parameters[attribute] = unchanged[parameter]


def _is_same(parameter: Tensor, original: Tensor) -> bool:
    """Whether no pass changed a parameter, nor reordered what is alike."""
    one, other = origin_of(parameter), origin_of(original)
    return torch.equal(parameter, original) and (one is None or one.matches(other))


def _has(model: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in model.named_modules())


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name
