"""A tracer that carries the values of example calls, and specialises sizes that are equal in all of them.

Each proxy knows its value in every example. The examples differ in all the sizes that the model lets
vary, so a size that is the same in all of them is fixed: it becomes a plain integer, and Python code
may count with it, branch on it or iterate over it. A size that differs stays a node of the graph.
A branch on it (or on data) cannot be traced; the module around it stays a leaf.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from sparsefx.passes.capture.argument_guards import require_default, require_length
from sparsefx.passes.capture.assignable import NotReplayable
from sparsefx.passes.capture.branches import (
    asks_for_more_than_one,
    guards_an_error,
    is_metadata,
    relates_sizes,
)
from sparsefx.passes.capture.coincidental_sizes import SizesFromData, either, from_data, inherited
from sparsefx.passes.capture.constructors import CONSTRUCTORS
from sparsefx.passes.capture.example_proxy import ExampleProxy, Sizes, builtins_know_proxies
from sparsefx.passes.capture.handed import Handed
from sparsefx.passes.capture.left_over import LeftOver, put_in
from sparsefx.passes.capture.module_tracer import ModuleTracer
from sparsefx.passes.capture.wrapped_functions import entered_functions
from sparsefx.passes.graph.layers import CONTRACTIONS
from sparsefx.passes.running.attributes import attributes_of, kept_attributes
from sparsefx.passes.running.examples import Examples, call

_LITERALS = (type(None), bool, int, float, complex, str, torch.dtype)


class ExampleTracer(ModuleTracer):
    """Traces a forward along example calls.

    Args:
        examples: the arguments of the calls (:mod:`sparsefx.passes.running.examples`).
        assumes: take branches that are the same for every size from 2 on (``if length > 1``), and those on
            sizes that differ by the same in all examples (``if length == other``); whoever traces has to see
            whether the graph holds at unusual sizes too.
        options: those of :class:`ModuleTracer`.

    Attributes:
        assumed: whether such a branch was met.
    """

    constructors = (*CONSTRUCTORS, "tensor", "finfo", "iinfo")  # of known sizes, numbers and data types

    def __init__(self, examples: Examples = (), assumes: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.calls, self.assumes = examples, assumes
        self.assumed = False
        self._evaluating = False
        self._numbers: dict[fx.Node, list[Any]] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with kept_attributes(root), entered_functions(), builtins_know_proxies():
            return super().trace(root, concrete_args)

    def context(self) -> tuple[bool, ...]:
        contexts = super().context()
        if self.keeps_idle:
            return contexts
        return contexts[2:]  # gradients matter only in training

    @property
    def needs_gradients(self) -> bool:
        return self.keeps_idle

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _CONTAINERS) or (not self.keeps_idle and _computes_a_weight(m)):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[[], Any], list[Any]]:
        """A placeholder for each argument that holds tensors or follows the input; others are specialised."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for name, first in self.calls[0].items():
            values = [example[name] for example in self.calls]
            if name.startswith("*"):
                if first:
                    positional = list(named.values()) + list(self._placeholder(name, values))
                    named = {}
            elif _holds_tensors(first) or _are_varying_sizes(values):
                named[name] = self._placeholder(name, values)
            else:
                named[name] = self._specialised(name, values)
        return lambda: self.root.forward(*positional, **named), []

    def traced(self, module: nn.Module, enter: Callable[[], Any], path: str, args: Any, kwargs: Any) -> Any:
        """The result of a forward; one that keeps something for its next call is traced as in a first one."""
        opaque, stack, last = dict(self.opaque), self.module_stack.copy(), self.last_node()
        handed = Handed((args, kwargs))
        enter_checked = functools.partial(super().traced, module, enter, path, args, kwargs)
        try:
            return enter_checked()
        except Exception as error:
            self.take_back(last)
            self.opaque, self.module_stack = opaque, stack
            if handed.changed():
                raise
            return self._traced_as_first(
                module, enter_checked, self._real_calls(module, path, args, kwargs), error
            )

    def _traced_as_first(
        self, module: nn.Module, enter: Callable[[], Any], calls: list[Callable[[], Any]], error: Exception
    ) -> Any:
        left, before, result = LeftOver(), attributes_of(module), None
        try:
            changed = put_in(module, calls, left)
            for part, names in changed.items():
                self.caches[part] = self.caches.get(part, set()) | names
            result = enter() if changed else None
        except Exception:  # the first reason says more
            left.asked = False
        if left.asked:
            return result
        for attributes in before.values():
            attributes.restore()
        raise error

    def _real_calls(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> list[Callable[[], Any]]:
        """The calls of a module in each example."""
        if not path:
            return [functools.partial(self._really, call, module.forward, example) for example in self.calls]
        values = [_values((args, kwargs), number) for number in range(len(self.calls))]
        return [functools.partial(self._really, _run_layer, module, *arguments) for arguments in values]

    def _placeholder(self, name: str, values: list[Any]) -> ExampleProxy:
        # after an argument with a default, Python wants one here too
        follows = any(node.op == "placeholder" and node.args for node in self.graph.nodes)
        default = (None,) if follows and not name.startswith("*") else ()
        node = self.create_node("placeholder", name, default, {})
        proxy = self.proxy(node)
        proxy.examples = values
        lengths = {len(value) for value in values if isinstance(value, (tuple, list, dict))}
        if len(lengths) > 1:
            raise NotReplayable(f"its argument {name!r} is not as long in every call")
        if lengths:  # Python code walks over it, so the graph holds for this length alone
            self.create_node("call_function", require_length, (node, lengths.pop(), name.lstrip("*")), {})
        return proxy

    def _specialised(self, name: str, values: list[Any]) -> Any:
        """An argument without tensors, at its value; another one is refused when the graph runs."""
        if not all(isinstance(leaf, _LITERALS) for leaf in pytree.tree_leaves(values)):
            raise NotReplayable(f"its argument {name!r} is a {type(values[0]).__name__}")
        if any(value != values[0] for value in values):
            raise NotReplayable(f"its argument {name!r} is not the same in every call")
        node = self.create_node("placeholder", name, (values[0],), {})
        self.create_node("call_function", require_default, (node, values[0], name), {})
        return values[0]

    def proxy(self, node: fx.Node) -> ExampleProxy:
        return ExampleProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if target in (operator.eq, operator.ne) and isinstance(args[1], LeftOver):
            return target(args[1], None)
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        evaluate = functools.partial(self._evaluate, kind, target)
        operands: list[ExampleProxy] = []

        def first_value(operand: ExampleProxy) -> Any:
            operands.append(operand)
            return operand.examples[0]

        first = _map((args, kwargs), first_value)
        with SizesFromData() as data:
            proxy.examples = [evaluate(*first)]
        proxy.examples += [evaluate(*_values((args, kwargs), number)) for number in range(1, len(self.calls))]
        proxy.loose = inherited(proxy, operands)
        if data.seen:
            proxy.loose = either(proxy.loose, from_data(evaluate, first, proxy.examples[0]))
        if target is operator.getitem and isinstance(args[0].loose, tuple) and isinstance(args[1], int):
            proxy.loose = args[0].loose[args[1]]
        if target is operator.getitem and all(value is None for value in proxy.examples):
            return None  # Python asks `is None`, which no proxy can answer
        if not any(isinstance(value, Tensor) for value in proxy.examples):
            self._numbers[proxy.node] = proxy.examples
        return _unpacked(proxy, target, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Sizes):
            return tuple(self.create_arg(size) for size in a)
        if isinstance(a, dict) and type(a) is not dict:  # an ordered dict, or a model output
            if not _is_made_of_its_items(a):
                raise NotReplayable(f"it makes a {type(a).__name__}, which its items do not describe")
            items = {key: self.create_arg(value) for key, value in a.items()}
            return self.create_node("call_function", type(a), (items,), {})
        return super().create_arg(a)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_wrapped(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace into a function that fx would leave alone, since values are known; or leave it too."""
        if inspect.isfunction(function):
            last = self.last_node()
            try:
                return function(*args, **kwargs)
            except Exception:  # it runs on proxies: anything may be raised
                self.take_back(last)
        return self.create_proxy("call_function", function, args, kwargs)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(obj.__len__())])

    def to_bool(self, obj: Any) -> bool:
        agreed = {bool(value) for value in obj.examples if not isinstance(value, Tensor)}
        if len(agreed) == 1 and is_metadata(obj.node):
            return agreed.pop()
        if len(agreed) == 1 and guards_an_error():
            return agreed.pop()
        if len(agreed) == 1 and self.assumes and self._holds_mostly(obj.node, *agreed):
            self.assumed = True
            return agreed.pop()
        raise NotReplayable("it branches on " + ("a size of its input" if agreed else "data"))

    def _holds_mostly(self, condition: fx.Node, outcome: bool) -> bool:
        return asks_for_more_than_one(condition, outcome) or relates_sizes(condition, self._numbers)

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "call_function":
            return self._really(target, *args, **kwargs)
        if kind == "call_method":
            return self._really(lambda: getattr(args[0], target)(*args[1:], **kwargs))
        found = self._really(operator.attrgetter(str(target)), self.root)
        if kind != "call_module":
            return found
        if type(found).__module__.startswith("torch.nn.modules."):
            return self._really(_run_layer, found, args, kwargs)
        with kept_attributes(found):  # what it keeps for its next call is no effect of its caller
            return self._really(_run_layer, found, args, kwargs)

    def _really(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function on values of an example, without a trace and without effects on random numbers."""
        state, self._evaluating = torch.get_rng_state(), True
        try:
            with torch.no_grad():
                return function(*args, **kwargs)
        finally:
            self._evaluating = False
            torch.set_rng_state(state)


def _run_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return layer(*args, **kwargs)
    except ValueError:
        if not layer.training or layer._modules:
            raise
        layer.training = False  # a BatchNorm refuses to train on one value a channel
        try:
            return layer(*args, **kwargs)
        finally:
            layer.training = True


def _computes_a_weight(module: nn.Module) -> bool:
    """Whether a module is a layer with a parametrized weight, or one of torch's that computes it."""
    if isinstance(module, CONTRACTIONS):
        return parametrize.is_parametrized(module)
    return type(module).__module__.startswith("torch.nn.utils.parametriz")


_CONTAINERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


_PIECES = {"split": 2, "chunk": 2, "tensor_split": 2, "split_with_sizes": 2, "unsafe_chunk": 2, "unbind": 1}
"""Functions that take a tensor apart, and the place of the dimension among their arguments."""


def _unpacked(proxy: ExampleProxy, target: Any, args: Any, kwargs: Any) -> Any:
    """Chunks and the like as a tuple of proxies, which Python may slice, join and unpack."""
    if target is list or any(type(value) not in (tuple, list) for value in proxy.examples):
        return proxy  # a list that is made in the graph is there to be written to
    place = _PIECES.get(getattr(target, "__name__", target))
    if place is not None and isinstance(args[0], ExampleProxy):
        dim = args[place] if len(args) > place else kwargs.get("dim", 0)
        free = type(args[0].size(dim)) is not int  # a proxy passes for an int to isinstance
        if free and not isinstance(args[1] if len(args) > 1 else None, (tuple, list)):  # whose count is fixed
            raise NotReplayable("it takes a dimension apart that follows the input")
    if len({len(value) for value in proxy.examples}) != 1:
        return proxy
    first = proxy.examples[0]
    chosen: Any = proxy
    return type(first)(chosen[index] for index in range(len(first)))


def _is_made_of_its_items(mapping: dict[Any, Any]) -> bool:
    """Whether a graph can make a dict of this class again from a plain one; a ``defaultdict`` it cannot."""
    try:
        again: dict[Any, Any] = type(mapping)(dict(mapping))
    except Exception:  # its constructor takes other arguments
        return False
    return again.keys() == mapping.keys() and all(again[key] is value for key, value in mapping.items())


def _values(arguments: Any, number: int) -> Any:
    """Arguments with every proxy replaced by its value in one example."""
    return _map(arguments, lambda proxy: proxy.examples[number])


def _map(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, fx.Proxy):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        mapped = [_map(item, function) for item in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    if isinstance(tree, dict):
        return {key: _map(value, function) for key, value in tree.items()}
    if isinstance(tree, slice):
        return slice(_map(tree.start, function), _map(tree.stop, function), _map(tree.step, function))
    return tree


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _are_varying_sizes(values: list[Any]) -> bool:
    """Whether an argument is an integer that follows the input, such as the height of a map."""
    return all(type(value) is int for value in values) and len(set(values)) > 1
