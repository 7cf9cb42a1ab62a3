"""A tracer that carries the values of example calls along, so that it can specialise what they agree on.

Each proxy knows its value in every example. The examples differ in all the sizes that the model lets
vary, so a size that is the same in all of them is fixed: it becomes a plain integer, and Python code
may count with it, branch on it or iterate over it. What differs stays a node of the graph. A branch
on it (or on data) cannot be traced; the module around it stays a leaf.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import linecache
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace
from torch.utils import _pytree as pytree

from sparsefx.passes.examples import Examples
from sparsefx.passes.module_tracer import ModuleTracer, NotReplayable
from sparsefx.passes.program import is_reshape

_LITERALS = (type(None), bool, int, float, complex, str, torch.dtype)

# What a tensor says of itself apart from its sizes and its data; the same for every input.
_RANK = frozenset({"dim", "ndimension"})
_KINDS = frozenset(
    {"is_floating_point", "is_complex", "is_signed", "element_size", "is_contiguous", "get_device"}
)
_METADATA = frozenset(
    {"dtype", "device", "layout", "type", "is_cuda", "is_mps", "is_sparse", "is_nested", "requires_grad"}
)

# Functions that make a tensor of given sizes: torch does not ask integer proxies how to run them.
_CONSTRUCTORS = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")


class ExampleTracer(ModuleTracer):
    """Traces a forward along example calls.

    Args:
        examples: the arguments of the calls (:mod:`sparsefx.passes.examples`).
        assumes: take branches that are the same for every size from 2 on (``if length > 1``); whoever
            traces has to see whether the graph holds for the size 1 too.
        options: those of :class:`ModuleTracer`.

    Attributes:
        assumed: whether such a branch was met.
    """

    def __init__(self, examples: Examples = (), assumes: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.calls, self.assumes = examples, assumes
        self.assumed = False
        self._evaluating = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _entered_functions(), self._recorded_constructors(), _proxies_are_instances():
            return super().trace(root, concrete_args)

    def context(self) -> tuple[bool, ...]:
        contexts = super().context()
        return (
            contexts if self.keeps_idle else contexts[2:]
        )  # without training, gradients are nobody's concern

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _CONTAINERS):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[[], Any], list[Any]]:
        """A placeholder for each argument that holds tensors or follows the input; others are specialised."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for name, first in self.calls[0].items():
            values = [call[name] for call in self.calls]
            if name.startswith("*"):
                if first:
                    positional = list(named.values()) + list(self._placeholder(name, values))
                    named = {}
            elif _holds_tensors(first) or _are_varying_sizes(values):
                named[name] = self._placeholder(name, values)
            else:
                named[name] = self._specialised(name, values)
        return lambda: self.root.forward(*positional, **named), []

    def _placeholder(self, name: str, values: list[Any]) -> ExampleProxy:
        # after an argument with a default, Python wants one here too
        follows = any(node.op == "placeholder" and node.args for node in self.graph.nodes)
        default = (None,) if follows and not name.startswith("*") else ()
        proxy = self.proxy(self.create_node("placeholder", name, default, {}))
        proxy.examples = values
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
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        proxy.examples = [
            self._evaluate(kind, target, *_values((args, kwargs), number))
            for number in range(len(self.calls))
        ]
        proxy.loose = _loose_dims(proxy, args, kwargs)
        return proxy

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, _Sizes):
            return tuple(self.create_arg(size) for size in a)
        if isinstance(a, dict) and type(a) is not dict:  # an ordered dict, or a model output
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
            last = next(iter(reversed(self.graph.nodes)), None)
            try:
                return function(*args, **kwargs)
            except Exception:  # it runs on proxies: anything may be raised
                self._take_back(last)
        return self.create_proxy("call_function", function, args, kwargs)

    def iter(self, obj: Any) -> Iterator[Any]:
        return iter([obj[index] for index in range(len(obj))])

    def to_bool(self, obj: Any) -> bool:
        agreed = {bool(value) for value in obj.examples if not isinstance(value, Tensor)}
        if len(agreed) == 1 and _is_metadata(obj.node):
            return agreed.pop()
        if len(agreed) == 1 and _guards_an_error():
            return agreed.pop()
        if len(agreed) == 1 and self.assumes and _asks_for_more_than_one(obj.node, *agreed):
            self.assumed = True
            return agreed.pop()
        raise NotReplayable("it branches on " + ("a size of its input" if agreed else "data"))

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        state, self._evaluating = torch.get_rng_state(), True
        try:
            with torch.no_grad():
                if kind == "call_function":
                    return target(*args, **kwargs)
                if kind == "call_method":
                    return getattr(args[0], target)(*args[1:], **kwargs)
                found = operator.attrgetter(str(target))(self.root)
                return _run_layer(found, args, kwargs) if kind == "call_module" else found
        finally:
            self._evaluating = False
            torch.set_rng_state(state)

    @contextmanager
    def _recorded_constructors(self) -> Iterator[None]:
        """Let ``torch.zeros(n, ...)`` and its like take sizes that are proxies."""
        originals = {name: getattr(torch, name) for name in _CONSTRUCTORS}
        for name, original in originals.items():
            setattr(torch, name, self._recording(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)

    def _recording(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def constructor(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
                return self.create_proxy("call_function", original, args, kwargs)
            return original(*args, **kwargs)

        return constructor


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


class ExampleProxy(fx.Proxy):
    """A proxy that knows its values.

    Attributes:
        examples: its value in each example call.
        loose: dimensions that came out alike in all of them by chance.
    """

    examples: list[Any]
    loose: frozenset[int] = frozenset()
    _is_param = False  # asked by isinstance(..., nn.Parameter) and Buffer
    _is_buffer = False

    def __init__(self, node: fx.Node, tracer: Any = None) -> None:
        super().__init__(node, tracer)
        self.examples = []

    @property
    def ndim(self) -> Any:
        return self.dim()

    @property
    def shape(self) -> Any:
        return self.size()

    def dim(self) -> int:
        return int(self._agreed("dim"))

    ndimension = dim

    def numel(self) -> Any:
        sizes = {value.numel() for value in self.examples}
        return (
            sizes.pop() if len(sizes) == 1 else self.tracer.create_proxy("call_method", "numel", (self,), {})
        )

    nelement = numel

    def size(self, dim: int | None = None) -> Any:
        """The sizes: integers where they are fixed, proxies where they follow the input."""
        if dim is not None:
            return self._size(dim)
        return _Sizes(self._size(index) for index in range(self.dim()))

    def _size(self, dim: int) -> Any:
        sizes = {value.shape[dim] for value in self.examples}
        return (
            sizes.pop()
            if len(sizes) == 1 and dim % self.dim() not in self.loose
            else self.tracer.create_proxy("call_method", "size", (self, dim), {})
        )

    def __getattr__(self, k: str) -> Any:
        if k in _KINDS and all(isinstance(value, Tensor) for value in self.examples):
            return lambda: self._agreed(k)
        return ExampleAttribute(self, k)

    def _agreed(self, method: str) -> Any:
        found = {getattr(value, method)() for value in self.examples}
        if len(found) != 1:
            raise NotReplayable(f"{method}() is not the same for every size of its input")
        return found.pop()

    def __len__(self) -> int:
        lengths = {len(value) for value in self.examples}
        if len(lengths) != 1:
            raise NotReplayable("it counts over a size of its input")
        return lengths.pop()

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __index__(self) -> int:
        raise NotReplayable("it needs a size of its input as a number")

    __int__ = __index__

    def __float__(self) -> float:
        raise NotReplayable("it needs a size of its input, or data, as a number")


class ExampleAttribute(fx.proxy.Attribute, ExampleProxy):
    """An attribute of a proxy, which becomes a node when it is used as a value."""

    def __init__(self, root: ExampleProxy, attr: str) -> None:
        fx.proxy.Attribute.__init__(self, root, attr)

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is not None and self._node._erased:  # with a module that turned out not to trace
            self._node = None
        return fx.proxy.Attribute.node.fget(self)  # type: ignore[attr-defined, no-any-return]

    @property
    def examples(self) -> list[Any]:  # type: ignore[override]
        return [getattr(value, self.attr) for value in self.root.examples]


class _Sizes(tuple[Any, ...]):
    """What ``x.shape`` is while tracing: integers, and proxies for sizes that vary."""

    def numel(self) -> Any:
        product: Any = 1
        for size in self:
            product = product * size
        return product

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Sizes(found) if isinstance(index, slice) else found


_CONTAINERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


def require_default(value: Any, default: Any, name: str) -> None:
    """Refuse a value other than the one that a graph was traced with.

    Raises:
        TypeError: the value differs.
    """
    if isinstance(value, fx.Proxy):  # the graph is being traced again, for example to unpickle it
        if not isinstance(value, ExampleProxy):
            value.tracer.create_proxy("call_function", require_default, (value, default, name), {})
    elif value is not default and (type(value) is not type(default) or value != default):
        raise TypeError(f"argument {name!r} was traced as {default!r} and cannot change; got {value!r}")


def _loose_dims(proxy: ExampleProxy, args: Any, kwargs: Any) -> frozenset[int]:
    """Sizes made by a computed amount, such as a padding to a multiple of 8, that are alike by chance."""
    operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, ExampleProxy)]
    tensors = [leaf for leaf in operands if all(isinstance(value, Tensor) for value in leaf.examples)]
    if len(tensors) != 1 or len(operands) == 1 or is_reshape(proxy.node):
        return frozenset()
    pairs = list(zip(proxy.examples, tensors[0].examples, strict=True))
    if not all(isinstance(result, Tensor) and result.dim() == source.dim() for result, source in pairs):
        return frozenset()
    dims = range(pairs[0][0].dim())
    return frozenset(
        dim for dim in dims if any(result.shape[dim] != source.shape[dim] for result, source in pairs)
    )


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


def _is_metadata(node: fx.Node) -> bool:
    """Whether a value follows from data types and devices alone, which no size of the input changes."""
    if node.target is getattr and node.args[1] in _METADATA:
        return True
    if node.target in (torch.is_floating_point, torch.is_complex):
        return True
    sources = node.all_input_nodes
    return bool(sources) and node.op == "call_function" and all(_is_metadata(source) for source in sources)


def _guards_an_error() -> bool:
    """Whether the branch being taken is an ``assert``, or an ``if`` that does nothing but raise.

    A call that takes the other way has no result, so there is nothing to be wrong about.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("torch.fx", __name__)):
        frame = frame.f_back
    return frame.f_lineno in _lines_that_guard_errors(frame.f_code.co_filename)


@functools.lru_cache(maxsize=64)
def _lines_that_guard_errors(filename: str) -> frozenset[int]:
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return frozenset()
    lines: set[int] = set()
    for part in ast.walk(tree):
        raises = isinstance(part, ast.If) and not part.orelse and isinstance(part.body[-1], ast.Raise)
        if isinstance(part, ast.Assert) or raises:
            test = part.test  # type: ignore[attr-defined]
            lines.update(range(part.lineno, (test.end_lineno or part.lineno) + 1))  # type: ignore[attr-defined]
    return frozenset(lines)


_COMPARISONS = frozenset({operator.eq, operator.ne, operator.gt, operator.ge, operator.lt, operator.le})


def _asks_for_more_than_one(node: fx.Node, outcome: bool) -> bool:
    """Whether a condition compares a size with a number so that all sizes from 2 on have one outcome."""
    if node.target not in _COMPARISONS or len(node.args) != 2:
        return False
    size, number = node.args
    if not isinstance(size, fx.Node) or size.target != "size" or not isinstance(number, int):
        return False
    compare: Any = node.target
    return bool(compare(2, number) == compare(sys.maxsize, number) == outcome)


@contextmanager
def _entered_functions() -> Iterator[None]:
    """Let the functions that their authors told fx not to enter go through the tracer."""
    fx_module: Any = _symbolic_trace
    original = fx_module._create_wrapped_func
    fx_module._create_wrapped_func = _through_the_tracer
    try:
        yield
    finally:
        fx_module._create_wrapped_func = original


@contextmanager
def _proxies_are_instances() -> Iterator[None]:
    """Let ``isinstance(x, Tensor)`` and ``isinstance(n, int)``, common in forwards, ask for the values.

    Only Python code asks ``builtins``: a proxy with another ``__class__`` would also pass for a tensor
    in C++, which crashes.
    """
    original = builtins.isinstance

    def of_values(obj: Any, kinds: Any) -> bool:
        if original(obj, kinds):
            return True
        if not original(obj, ExampleProxy) or original(obj, ExampleAttribute):
            return False
        values = obj.__dict__.get("examples")
        return bool(values) and all(original(value, kinds) for value in values)

    builtins.isinstance = of_values
    try:
        yield
    finally:
        builtins.isinstance = original


def _through_the_tracer(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        tracer: Any = next((leaf.tracer for leaf in leaves if isinstance(leaf, ExampleProxy)), None)
        return function(*args, **kwargs) if tracer is None else tracer.call_wrapped(function, args, kwargs)

    return called
