"""Proxies that know the values they stand for in several example calls."""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from sparsefx.passes.capture.assignable import Assignable, AssignableAttribute, NotReplayable
from sparsefx.passes.capture.coincidental_sizes import Loose, sized_like
from sparsefx.passes.graph.in_place import FUNCTIONAL, FUNCTIONS

# What a tensor says of itself apart from its sizes and its data; the same for every input.
_KINDS = frozenset(
    {"is_floating_point", "is_complex", "is_signed", "element_size", "is_contiguous", "get_device"}
)


_OWN = frozenset({"node", "tracer", "examples", "loose", "root", "attr", "_node"})


class ExampleProxy(Assignable):
    """A proxy that knows its values.

    Attributes:
        examples: its value in each example call.
        loose: dimensions that may have come out alike in all of them by chance.
    """

    examples: list[Any]
    loose: Loose = frozenset()
    _is_param = False  # asked by isinstance(..., nn.Parameter) and Buffer
    _is_buffer = False

    def __init__(self, node: fx.Node, tracer: Any = None) -> None:
        super().__init__(node, tracer)
        self.examples = []

    def keeps(self, name: str) -> bool:
        return name in _OWN

    def assigned(self, name: str, value: Any) -> Any:
        if all(hasattr(known, f"__{name}__") for known in self.examples):
            return super().assigned(name, value)
        function = FUNCTIONAL[FUNCTIONS[name]]  # of a number, which cannot change
        return self.tracer.create_proxy("call_function", function, (self, value), {})

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
            sizes.pop()
            if len(sizes) == 1 and not self.loose
            else self.tracer.create_proxy("call_method", "numel", (self,), {})
        )

    nelement = numel

    def size(self, dim: int | None = None) -> Any:
        """The sizes: integers where they are fixed, proxies where they follow the input."""
        if dim is not None:
            return self._size(dim)
        return Sizes(self._size(index) for index in range(self.dim()))

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
        values = [] if k in _OWN else [getattr(value, k, value) for value in self.examples]
        if values and all(value is None for value in values):
            return None  # the order of a packed sequence that was sorted, say
        return ExampleAttribute(self, k)

    def _agreed(self, method: str) -> Any:
        found = {getattr(value, method)() for value in self.examples}
        if len(found) != 1:
            raise NotReplayable(f"{method}() is not the same for every size of its input")
        return found.pop()

    def __len__(self) -> int:
        lengths = {len(value) for value in self.examples}
        if len(lengths) != 1 or 0 in self.loose:
            raise NotReplayable("it counts over a size of its input")
        return lengths.pop()

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __index__(self) -> int:
        raise NotReplayable("it needs a size of its input as a number")

    __int__ = __index__

    def __ceil__(self) -> Any:
        return self._rounded(math.ceil)

    def __floor__(self) -> Any:
        return self._rounded(math.floor)

    def __trunc__(self) -> Any:
        return self._rounded(math.trunc)

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self, digits), {})

    def _rounded(self, function: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self,), {})

    def __float__(self) -> float:
        raise NotReplayable("it needs a size of its input, or data, as a number")


class ExampleAttribute(AssignableAttribute, ExampleProxy):
    """An attribute of a proxy, which becomes a node when it is used as a value."""

    def __init__(self, root: ExampleProxy, attr: str) -> None:
        AssignableAttribute.__init__(self, root, attr)

    @property
    def examples(self) -> list[Any]:  # type: ignore[override]
        return [getattr(value, self.attr) for value in self.root.examples]

    @property
    def loose(self) -> Loose:  # type: ignore[override]
        root: Any = self.root
        if not isinstance(root.loose, tuple):
            return sized_like(self.examples, [root])
        names = getattr(root.examples[0], "__match_args__", ())  # the values beside the indices, say
        return root.loose[names.index(self.attr)] if self.attr in names else frozenset()


class Sizes(tuple[Any, ...]):
    """What ``x.shape`` is while tracing: integers, and proxies for sizes that vary."""

    def numel(self) -> Any:
        product: Any = 1
        for size in self:
            product = product * size
        return product

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Sizes(found) if isinstance(index, slice) else found

    def __eq__(self, other: object) -> Any:
        """False where fixed sizes differ, else whether the others are equal, which is a node."""
        if not isinstance(other, tuple):
            return NotImplemented
        if len(self) != len(other):
            return False
        pairs = [one == its for one, its in zip(self, other, strict=True)]
        if any(pair is False for pair in pairs):
            return False
        return functools.reduce(operator.and_, (pair for pair in pairs if pair is not True), True)

    def __ne__(self, other: object) -> Any:
        equal = self == other
        if isinstance(equal, bool):
            return not equal
        return equal.tracer.create_proxy("call_function", operator.not_, (equal,), {})

    __hash__ = tuple.__hash__


@contextmanager
def builtins_know_proxies() -> Iterator[None]:
    """Let ``isinstance(x, Tensor)``, ``isinstance(n, int)``, ``len(x)``, ``max(n, 3)`` ask for the values.

    Only Python code asks ``builtins``: a proxy with another ``__class__`` would also pass for a tensor
    in C++, which crashes. ``__len__`` has to be an integer, which a size is not if it varies, and
    ``max`` and ``min`` branch on one.
    """
    is_instance, length, largest, least = builtins.isinstance, builtins.len, builtins.max, builtins.min

    def of_values(obj: Any, kinds: Any) -> bool:
        if is_instance(obj, kinds):
            return True
        if not is_instance(obj, ExampleProxy) or is_instance(obj, ExampleAttribute):
            return False
        values = obj.__dict__.get("examples")
        return bool(values) and all(is_instance(value, kinds) for value in values)

    def first_size(obj: Any) -> Any:
        known = obj.examples if is_instance(obj, ExampleProxy) else ()
        return obj.size(0) if known and all(is_instance(v, Tensor) for v in known) else length(obj)

    builtins.isinstance, builtins.len = of_values, first_size
    builtins.max, builtins.min = _of_sizes(largest, torch.sym_max), _of_sizes(least, torch.sym_min)
    try:
        with _kept_from_unwrapping():
            yield
    finally:
        builtins.isinstance, builtins.len = is_instance, length
        builtins.max, builtins.min = largest, least


def _of_sizes(builtin: Callable[..., Any], of_two: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A builtin ``max`` or ``min`` that becomes a node where numbers among its arguments follow the input."""

    def extreme(*args: Any, **kwargs: Any) -> Any:
        values = args[0] if len(args) == 1 and type(args[0]) in (tuple, list, Sizes) else args
        proxies = [value for value in values if type(value) is ExampleProxy]
        if kwargs or len(values) < 2 or not proxies or not all(map(_is_number, values)):
            return builtin(*args, **kwargs)
        create = proxies[0].tracer.create_proxy
        return functools.reduce(lambda one, other: create("call_function", of_two, (one, other), {}), values)

    return extreme


def _is_number(value: Any) -> bool:
    known = value.examples if type(value) is ExampleProxy else [value]
    return all(type(one) in (int, float) for one in known)


@contextmanager
def _kept_from_unwrapping() -> Iterator[None]:
    """Let ``autograd.Function.apply`` take proxies.

    In older versions of torch, 2.6 among them, C++ code unwraps all that ``isinstance`` calls a tensor.
    """
    module: Any = torch._functorch.utils
    unwrap = getattr(module, "unwrap_if_dead", None)
    if unwrap is None:
        yield
        return
    module.unwrap_if_dead = lambda obj: obj if isinstance(obj, ExampleProxy) else unwrap(obj)
    try:
        yield
    finally:
        module.unwrap_if_dead = unwrap
