"""Run a graph once and record its ATen calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from sparsefx.passes.graph.in_place import FUNCTIONAL
from sparsefx.passes.graph.layers import is_plain
from sparsefx.passes.graph.modes import ByMode
from sparsefx.passes.graph.program import Call, Program, Value
from sparsefx.passes.running.eager_mode import EagerMode
from sparsefx.passes.running.interpreter import Interpreter
from sparsefx.passes.running.leaves import tensors_in
from sparsefx.passes.running.untouched import untouched

_RESHAPES = frozenset({torch.reshape, "reshape", "view"})


def record_once(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Program:
    """The program of one run, in the graph's present mode and without gradients."""
    recorder = _Recorder(graph_module)
    recorder.program.example = tuple(example_inputs)
    with torch.no_grad(), untouched(graph_module, example_inputs) as inputs:
        recorder.program.result = _RecordingInterpreter(graph_module, recorder).run(*inputs)
    return recorder.program


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
        written = {id(tensor) for tensor in written_tensors(func, args, kwargs)}
        shared = [tensor for key in written for tensor in self._others_sharing(key)]
        aliases = tuple(self.value(tensor) for tensor in shared)
        opaque = self.opaque_node or any(self._values[key].constant is not None for key in written)
        outputs = [self._output(tensor, written) for tensor in tensors_in(result)]
        outputs += [self._new_value(tensor) for tensor in shared]
        assert self.node is not None
        op = _functional(func)
        call = Call(
            op,
            _in_order_of(op, func, recorded_args),
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


class _LayersWhole(TorchFunctionMode):
    """Has some layers recorded as one call, which torch computes by several, whose parts say less.

    Some recurrent layers are calls for each step of time. An instance norm moves channels among the samples.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is F.instance_norm:
            call = torch.ops.aten.instance_norm.default, _instance_norm(*args, **kwargs)
        elif name in _RECURRENT:
            packed = isinstance(args[3], (tuple, list))  # weights come after the lengths of packed sequences
            call = getattr(getattr(torch.ops.aten, name), "data" if packed else "input"), args
        else:
            return func(*args, **kwargs)
        with _disable_current_modes():
            return self.recorder.__torch_dispatch__(call[0], types, call[1])


_RECURRENT = frozenset({"gru", "lstm", "rnn_tanh", "rnn_relu"})


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    """The arguments of ATen's instance norm, from those of ``F.instance_norm``."""
    return (input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, False)


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
        with self.recorder, _LayersWhole(self.recorder):
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
    return target in FUNCTIONAL or module.split(".")[0] in ("torch", "_operator", "builtins", "math")


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


def written_tensors(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments, of any shape, that the operator writes, by its schema."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += tensors_in(value)
    return written


@cache
def _functional(func: Any) -> Any:
    """``relu`` for ``relu_``: the analyses see values, not memory. One that has none stays what it is.

    Overloads of the two may bear different names: that of ``pow_.Scalar`` is ``pow.Tensor_Scalar``.
    """
    name = func.overloadpacket.__name__
    if func.namespace != "aten" or not name.endswith("_") or name.endswith("__"):
        return func
    packet = getattr(torch.ops.aten, name[:-1], None)
    overloads = [getattr(packet, name) for name in packet.overloads()] if packet is not None else []
    return next((one for one in overloads if _parameters(one) == _parameters(func)), func)


def _parameters(func: Any) -> set[tuple[str, str, bool]]:
    return {(one.name, str(one.type), one.kwarg_only) for one in func._schema.arguments}


def _in_order_of(op: Any, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positional arguments as another operator takes them: ``polygamma_(x, n)`` is ``polygamma(n, x)``."""
    named = dict(zip((one.name for one in func._schema.arguments), args, strict=False))
    return tuple(named[one.name] for one in op._schema.arguments if one.name in named)
