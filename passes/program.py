"""The ATen program of a graph: what each node really computes, recorded by running it on examples.

Modules, functionals, methods and operators all bottom out in a few ATen operations, so the analyses
look at these; each recorded call knows the graph node it came from. Tensors become values in single
assignment form: an operation that writes in place makes a new value of the same tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparsefx.passes.examples import Inputs
from sparsefx.passes.interpreter import Interpreter
from sparsefx.passes.layers import is_plain
from sparsefx.passes.leaves import tensors_in
from sparsefx.passes.modes import ByMode
from sparsefx.passes.view_groups import view_groups

_RESHAPES = frozenset({torch.reshape, "reshape", "view"})
_VIEWS = frozenset({"view", "_unsafe_view"})


@dataclass(eq=False)
class Value:
    """One tensor of the program.

    Attributes:
        shape: its shape in the recorded run.
        dtype: its data type.
        constant: the parameter, buffer or constant itself; None for what is computed.
        names: the attributes under which the model holds the constant, several where it is tied.
        readers: how many calls read it.
        varying: the dimensions that differ between the recorded runs: their sizes follow the input.
    """

    shape: torch.Size
    dtype: torch.dtype
    constant: Tensor | None = None
    names: tuple[str, ...] = ()
    readers: int = 0
    varying: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Call:
    """One ATen operation.

    Attributes:
        op: the operator, in its functional form (``relu`` for ``relu_``).
        args: its arguments, with each tensor replaced by its :class:`Value`.
        kwargs: its keyword arguments, likewise.
        outputs: the values it makes.
        node: the graph node that it belongs to.
        aliases: values that look into memory it writes; nothing can be said of any of them.
        computed: it is handed sizes that follow the input, which may be others in another run.
        opaque: what it computes may depend on more than the graph shows: Python code that is not torch's,
            a buffer that it writes. What was seen in one run then says nothing of another.
        regrouped: dimensions of its operand that it takes together in another run, and not in this one.
    """

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value]
    node: fx.Node
    aliases: tuple[Value, ...] = ()
    computed: bool = False
    opaque: bool = False
    regrouped: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The operator's name without its overload: ``convolution``; not ATen's own: ``library::name``."""
        name = str(self.op.overloadpacket.__name__)
        return name if self.op.namespace == "aten" else f"{self.op.namespace}::{name}"

    @property
    def inputs(self) -> list[Value]:
        """The values it reads, in the order of its arguments."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [*(leaf for leaf in leaves if isinstance(leaf, Value)), *self.aliases]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the operator with other tensors in the places of :attr:`inputs`."""
        replacement = iter(tensors)
        args, kwargs = pytree.tree_map(
            lambda leaf: next(replacement) if isinstance(leaf, Value) else leaf, (self.args, self.kwargs)
        )
        return tensors_in(self.op(*args, **kwargs))


@dataclass
class Program:
    """A recorded graph.

    Attributes:
        calls: the operations in the order they ran.
        inputs: the values of the graph's inputs.
        outputs: the values that the graph returns.
        node_values: for each node, the tensors of its result.
        node_inputs: for each node, the tensors of its arguments as they were when it ran; a later
            write in place makes them other values than the ``node_values`` of their nodes.
        constants: the parameters, buffers and other tensors that the graph holds.
        example: the positional arguments of the recorded run.
        result: what the graph returned for the first of the inputs.
        findings: what was worked out from the numbers that its constants hold; void once they change.
    """

    calls: list[Call] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    node_values: dict[fx.Node, list[Value]] = field(default_factory=dict)
    node_inputs: dict[fx.Node, list[Value]] = field(default_factory=dict)
    constants: list[Value] = field(default_factory=list)
    example: tuple[Any, ...] = ()
    result: Any = None
    findings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def by_node(self) -> dict[fx.Node, list[Call]]:
        """The operations that each graph node ran."""
        calls: dict[fx.Node, list[Call]] = {}
        for call in self.calls:
            calls.setdefault(call.node, []).append(call)
        return calls

    def calls_of(self, node: fx.Node) -> list[Call]:
        """The operations that one graph node ran."""
        return self.by_node.get(node, [])

    def values(self) -> Iterator[Value]:
        """Every value: inputs, constants, and what the calls make."""
        yield from self.inputs
        yield from self.constants
        for call in self.calls:
            yield from call.outputs


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
    programs = [_record_once(graph_module, values) for values in inputs]
    program = min(programs, key=_ones) if len(programs) > 1 else programs[0]
    program.result = programs[0].result
    for other in programs:
        if other is not program:
            _mark_what_differs(program, other)
    return program


def _ones(program: Program) -> int:
    return sum(list(value.shape).count(1) for call in program.calls for value in call.outputs)


def _record_once(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Program:
    recorder = _Recorder(graph_module)
    recorder.program.example = tuple(example_inputs)
    with torch.no_grad(), untouched(graph_module, example_inputs) as inputs:
        recorder.program.result = _RecordingInterpreter(graph_module, recorder).run(*inputs)
    return recorder.program


def _mark_what_differs(program: Program, other: Program) -> None:
    """Note the dimensions that have another size in a second run, and nodes that ran other operations."""
    pairs = list(zip(program.inputs, other.inputs, strict=True))
    for node, calls in program.by_node.items():
        others = other.calls_of(node)
        if [(call.name, len(call.outputs)) for call in calls] != [(c.name, len(c.outputs)) for c in others]:
            for call in calls:
                call.opaque = True
                for value in call.outputs:
                    value.varying.update(range(len(value.shape)))
            continue
        for call, its in zip(calls, others, strict=True):
            pairs += zip(call.outputs, its.outputs, strict=True)
            if call.name in _VIEWS and _same_ranks(call, its):
                _mark_regrouped(call, its)
            elif call.name in _VIEWS:
                call.opaque = True
    for value, its_value in pairs:
        if len(value.shape) == len(its_value.shape):
            sizes = zip(value.shape, its_value.shape, strict=True)
            value.varying.update(dim for dim, (one, two) in enumerate(sizes) if one != two)


def _same_ranks(call: Call, its: Call) -> bool:
    ranks = [[len(value.shape) for value in (*c.inputs, *c.outputs)] for c in (call, its)]
    return ranks[0] == ranks[1]


def _mark_regrouped(call: Call, its: Call) -> None:
    """Note the dimensions that a view takes together in another run, and not in this one.

    ``(b, n, 12)`` as ``(b, 4, 3, -1)`` splits the channels where n is 4, and mixes them with the
    positions where it is 8.
    """
    (source,), (result,) = call.inputs, call.outputs
    sources, results = [source.shape, its.inputs[0].shape], [result.shape, its.outputs[0].shape]
    here, row, column = view_groups(sources[:1], results[:1]), 0, 0
    for rows, columns in view_groups(sources, results):
        if any(row <= r <= rows and column <= c <= columns for r, c in here if (r, c) != (rows, columns)):
            call.regrouped.update(range(row, rows))
            source.varying.update(range(row, rows))
            result.varying.update(range(column, columns))
        here = [end for end in here if end > (rows, columns)]
        row, column = rows, columns


@contextmanager
def untouched(model: nn.Module, inputs: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Copies of the inputs for one run, after which the model's buffers are what they were.

    A forward may write into its input, or count its calls in a buffer; looking at a model must not
    change it.
    """
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tuple(inputs))
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)


class EagerMode(TorchDispatchMode):
    """A dispatch mode in which nothing is compiled: torch need not import its compiler to leave it alone."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Recorder(EagerMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.program = Program()
        self.node: fx.Node | None = None
        self.opaque_node = self.computed_node = False
        self._names = _tensor_names(model)
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # an id is a tensor's only while the tensor lives
        self._sharing: dict[int, dict[int, Tensor]] = {}  # storage -> the tensors that look into it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorded_args, recorded_kwargs = pytree.tree_map(self._value_or_leaf, (args, kwargs))
        result = func(*args, **kwargs)
        written = {id(tensor) for tensor in _written_tensors(func, args, kwargs)}
        shared = [tensor for key in written for tensor in self._others_sharing(key)]
        aliases = tuple(self.value(tensor) for tensor in shared)
        opaque = self.opaque_node or any(self._values[key].constant is not None for key in written)
        outputs = [self._output(tensor, written) for tensor in tensors_in(result)]
        outputs += [self._new_value(tensor) for tensor in shared]
        assert self.node is not None
        call = Call(
            _functional(func),
            recorded_args,
            recorded_kwargs,
            outputs,
            self.node,
            aliases,
            self.computed_node,
            opaque,
        )
        for value in call.inputs:
            value.readers += 1
        self.program.calls.append(call)
        return result

    def value(self, tensor: Tensor) -> Value:
        """The value a tensor stands for; one that was never seen is a constant of the model."""
        if id(tensor) not in self._values:
            value = Value(tensor.shape, tensor.dtype, tensor.detach(), self._names.get(id(tensor), ()))
            self.program.constants.append(value)
            self._remember(tensor, value)
        return self._values[id(tensor)]

    def graph_input(self, tensor: Tensor) -> None:
        """Note that a tensor is an input of the graph."""
        self.program.inputs.append(self._new_value(tensor))

    def _value_or_leaf(self, leaf: Any) -> Any:
        return self.value(leaf) if isinstance(leaf, Tensor) else leaf

    def _output(self, tensor: Tensor, written: set[int]) -> Value:
        if id(tensor) in self._values and id(tensor) not in written:
            return self._values[id(tensor)]  # the operation handed an argument back
        return self._new_value(tensor)

    def _new_value(self, tensor: Tensor) -> Value:
        value = Value(tensor.shape, tensor.dtype)
        self._remember(tensor, value)
        return value

    def _remember(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        if tensor.layout is torch.strided:
            self._sharing.setdefault(tensor.untyped_storage().data_ptr(), {})[id(tensor)] = tensor

    def _others_sharing(self, key: int) -> list[Tensor]:
        """The other tensor objects of the program that look into the memory of one that was written."""
        sharing = next((tensors for tensors in self._sharing.values() if key in tensors), {})
        return [tensor for other, tensor in sharing.items() if other != key]


class _RecordingInterpreter(Interpreter):
    def __init__(self, module: fx.GraphModule, recorder: _Recorder) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.recorder = recorder

    def run_node(self, n: fx.Node) -> Any:
        self.recorder.node = n
        arguments = self.fetch_args_kwargs_from_env(n)
        self.recorder.program.node_inputs[n] = self._values(arguments)
        self.recorder.opaque_node = self._is_opaque(n)
        self.recorder.computed_node = self._is_computed(n)
        with self.recorder:
            result = super().run_node(n)
        if n.op == "placeholder":
            for tensor in tensors_in(result):
                self.recorder.graph_input(tensor)
        values = self._values(result)
        self.recorder.program.node_values[n] = values
        if n.op == "output":
            self.recorder.program.outputs = values
        return result

    def _is_opaque(self, node: fx.Node) -> bool:
        """Whether a node runs Python code that is not torch's."""
        if node.op == "call_module":
            return not is_plain(self.fetch_attr(str(node.target)))
        return node.op == "call_function" and not is_torch_function(node.target)

    def _is_computed(self, node: fx.Node) -> bool:
        """Whether a node takes sizes that were computed, other than those of a reshape."""
        values = self.recorder.program.node_values
        sources = [node for node in node.all_input_nodes if not self._is_by_mode(node)]
        return not is_reshape(node) and any(not values[source] for source in sources)

    def _is_by_mode(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.fetch_attr(str(node.target)), ByMode)

    def _values(self, result: Any) -> list[Value]:
        return [self.recorder.value(tensor) for tensor in tensors_in(result)]


def is_torch_function(target: Any) -> bool:
    """Whether a function is torch's, or Python's own."""
    module = getattr(target, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "_operator", "builtins", "math")


def is_reshape(node: fx.Node) -> bool:
    """Whether a node is a ``view`` or ``reshape`` to sizes, literal or computed."""
    if node.op not in ("call_function", "call_method") or node.target not in _RESHAPES:
        return False
    if set(node.kwargs) - {"shape"} or len(node.args) + len(node.kwargs) < 2:
        return False
    return not isinstance(node.args[-1], torch.dtype)  # view(dtype) reads the same bytes otherwise


def _tensor_names(model: nn.Module) -> dict[int, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names[id(tensor)] = (*names.get(id(tensor), ()), name)
    return names


def _written_tensors(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that the operator writes, by its schema."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += tensors_in(value)
    return written


def _functional(func: Any) -> Any:
    """``relu`` for ``relu_``: the analyses see values, not memory."""
    name = func.overloadpacket.__name__
    if func.namespace != "aten" or not name.endswith("_") or name.endswith("__"):
        return func
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, func._overloadname, func) if packet is not None else func
