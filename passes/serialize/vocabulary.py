"""What a graph that comes from a file may name: functions, tensor methods, attributes.

Nothing is imported or looked up by a name from the file. Each name is a key of a table of objects that
this process holds already: torch's and Python's pure functions, those that passes put into graphs, and
those that the user's own model turns out to use when it is traced.
"""

from __future__ import annotations

import builtins
import collections
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from sparsefx.passes.capture.argument_guards import require_default, require_length
from sparsefx.passes.capture.size_guards import require_sizes
from sparsefx.passes.graph.in_place import FUNCTIONS
from sparsefx.passes.rewrites.decompose_attention import attention_mask
from sparsefx.passes.serialize.plain_values import DataError

PASS_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sparsefx.passes.open_attention.attention_mask": attention_mask,
    "sparsefx.passes.example_tracer.require_default": require_default,
    "sparsefx.passes.example_tracer.require_length": require_length,
    "sparsefx.passes.size_guards.require_sizes": require_sizes,
    **{f"sparsefx.passes.in_place.{function.__qualname__}": function for function in FUNCTIONS.values()},
}
"""Functions of sparsefx that its passes put into graphs; a pass that makes another adds it here. The names
belong to the file format: they stay what they are wherever the functions move."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPERATORS = _words("""
    abs add and_ contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod imul index inv
    invert ior ipow irshift is_ is_not isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow
    rshift setitem sub truediv truth xor
""")
_BUILTINS = _words("abs bool divmod float getattr int len max min pow round sum")
_FACTORIES = _words("_assert arange empty eye finfo full iinfo linspace ones sym_max sym_min tensor zeros")
_OPERATORS_OF = "torch._ops"
_PACKING = _words("_pack_padded_sequence _pad_packed_sequence")  # private, and called by torch.nn.utils.rnn
_CONTAINERS = _words("Counter OrderedDict")
_NAMESPACES: dict[str, ModuleType] = {
    "torch": torch,
    "torch.nn.functional": F,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
    "torch.special": torch.special,
}
# Not computations on tensors, or computations that trust their arguments' memory.
_EXCLUDED_FUNCTIONS = _words("autocast triplet_margin_with_distance_loss")
_EXCLUDED_PREFIXES = ("_", "fbgemm", "miopen", "quantized", "sym_")
_EXCLUDED_METHODS = _words("""
    apply_ backward const_data_ptr data_ptr map2_ map_ module_load numpy pin_memory record_stream
    register_hook register_post_accumulate_grad_hook resize resize_ resize_as resize_as_ resize_as_sparse_
    retain_grad set_ share_memory_ sparse_resize_ sparse_resize_and_clear_ storage storage_type to_mkldnn
    untyped_storage
""")
_MORE_METHODS = _words("""
    flatten permute reshape unflatten
    new_empty new_full new_ones new_tensor new_zeros
""")  # those that passes call, and those that make tensors: torch lists not all of them
_ATTRIBUTES = _words("""
    H T bits device dtype eps imag is_cpu is_cuda is_mps is_nested is_sparse itemsize layout mH mT max min
    nbytes ndim real requires_grad shape smallest_normal tiny type
""")


@dataclass(frozen=True)
class Vocabulary:
    """Names that graphs use.

    Attributes:
        functions: functions by name.
        methods: names of methods.
        attributes: names read by ``getattr``.
    """

    functions: Mapping[str, Callable[..., Any]]
    methods: frozenset[str]
    attributes: frozenset[str]


class Names:
    """What one graph may name: the general vocabulary, and that of the user's own model.

    Args:
        own_graphs: gives the graphs of the user's model; called only if a name is not a general one.
        containers: the classes of results that the model's code knows, by qualified name.
        names_operator: whether the model's code names an operator, by its namespace and name.
    """

    def __init__(
        self,
        own_graphs: Callable[[], Iterable[fx.Graph]],
        containers: Mapping[str, type] | None = None,
        names_operator: Callable[[str, str], bool] = lambda namespace, name: False,
    ) -> None:
        self._own_graphs, self._containers = own_graphs, containers or {}
        self._names_operator = names_operator

    @cached_property
    def _own(self) -> Vocabulary:
        return _used_by(self._own_graphs())

    def function(self, name: str) -> Callable[..., Any]:
        """The function of a name.

        Raises:
            DataError: the name is in no table.
        """
        found = general_vocabulary().functions.get(name) or _aten(name) or self._containers.get(name)
        found = found or self._own.functions.get(name) or _operator(name, self._names_operator)
        if found is None:
            raise DataError(f"function {name[:80]!r} is neither known nor used by the model given")
        return found

    def check_method(self, name: str) -> None:
        """Refuse a method that is neither a tensor's nor called by the user's model.

        Raises:
            DataError: it is neither.
        """
        if name not in general_vocabulary().methods and name not in self._own.methods:
            raise DataError(f"method {name[:80]!r} is neither known nor called by the model given")

    def check_attribute(self, name: str) -> None:
        """Refuse an attribute that is neither a tensor's nor read by the user's model.

        Raises:
            DataError: it is neither.
        """
        known = general_vocabulary().attributes.union(*map(_fields_of, self._containers.values()))
        if name not in known and name not in self._own.attributes:
            raise DataError(f"attribute {name[:80]!r} is neither known nor read by the model given")


@cache
def general_vocabulary() -> Vocabulary:
    """What any graph may name."""
    overridable = torch.overrides.get_overridable_functions()
    methods = {getattr(method, "__name__", "_") for method in overridable[Tensor]}
    returned = {name for kind in torch.return_types.all_return_types for name in _fields_of(kind)}
    return Vocabulary(
        _general_functions({function for found in overridable.values() for function in found}),
        _MORE_METHODS | {name for name in methods - _EXCLUDED_METHODS if not name.startswith("_")},
        frozenset({*_ATTRIBUTES, *returned}),
    )


def _fields_of(kind: Any) -> tuple[str, ...]:
    """The names of what a tuple or dataclass holds, such as values and indices."""
    names: tuple[str, ...] = getattr(kind, "__match_args__", ())
    return names


def _general_functions(overridable: set[Any]) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for prefix, namespace in _NAMESPACES.items():
        for name, value in vars(namespace).items():
            excluded = name.startswith(_EXCLUDED_PREFIXES) or name in _EXCLUDED_FUNCTIONS
            if callable(value) and not excluded and _is_in(value, overridable):
                found[f"{prefix}.{name}"] = value
    for prefix, module, names in (
        ("torch", torch, _FACTORIES),
        ("operator", operator, _OPERATORS),
        ("builtins", builtins, _BUILTINS),
        ("torch", torch._VF, _PACKING),
        ("collections", collections, _CONTAINERS),
        ("math", math, [name for name in vars(math) if callable(getattr(math, name)) and name[0] != "_"]),
    ):
        found.update({f"{prefix}.{name}": getattr(module, name) for name in names})
    return found | PASS_FUNCTIONS


def _is_in(value: Any, values: set[Any]) -> bool:
    try:
        return value in values
    except TypeError:  # not hashable
        return False


def _aten(name: str) -> Callable[..., Any] | None:
    """A pure ATen overload by its name, such as ``aten.add.Tensor``."""
    namespace, *path = name.split(".")
    if namespace != "aten" or len(path) != 2 or not all(part.isidentifier() for part in path):
        return None
    packet = getattr(torch.ops.aten, path[0], None)
    overload = getattr(packet, path[1], None)
    return overload if isinstance(overload, torch._ops.OpOverload) and _is_pure(overload) else None


def _is_pure(overload: torch._ops.OpOverload) -> bool:
    """Whether torch itself lists an overload as one of its core or elementwise computations."""
    listed = torch.Tag.core in overload.tags or torch.Tag.pointwise in overload.tags
    return listed and not overload._schema.is_mutable


def _operator(name: str, is_named: Callable[[str, str], bool]) -> Callable[..., Any] | None:
    """An operator of another library by its name, such as ``torch._ops.torchvision.nms``."""
    path = name.removeprefix(f"{_OPERATORS_OF}.").split(".")
    known = name.startswith(f"{_OPERATORS_OF}.") and len(path) == 2 and all(map(str.isidentifier, path))
    if not known or not is_named(*path):
        return None
    packet = getattr(getattr(torch.ops, path[0]), path[1], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return None
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return None if any(schema.is_mutable for schema in schemas) else packet


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a graph's function is saved.

    Raises:
        DataError: it would be mistaken for another function.
    """
    general = _general_names().get(function)
    if general is not None:
        return general
    name = str(function) if isinstance(function, torch._ops.OpOverload) else qualified(function)
    if name in general_vocabulary().functions:
        raise DataError(f"function {name!r} is another than the one known by this name")
    return name


@cache
def _general_names() -> dict[Callable[..., Any], str]:
    names: dict[Callable[..., Any], str] = {}
    for name, function in general_vocabulary().functions.items():
        names.setdefault(function, name)
    return names


def qualified(function: Callable[..., Any]) -> str:
    """Where a function or class is defined, as a name."""
    if isinstance(function, torch._ops.OpOverloadPacket):  # its own names may be those of C++
        return f"{_OPERATORS_OF}.{function}"
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or str(function)
    return f"{getattr(function, '__module__', None)}.{name}"


def _used_by(graphs: Iterable[fx.Graph]) -> Vocabulary:
    """What traced graphs name; two functions of one name are left out."""
    functions: dict[str, Callable[..., Any]] = {}
    ambiguous, methods, attributes = set[str](), set[str](), set[str]()
    for node in (node for graph in graphs for node in graph.nodes):
        if node.op == "call_method":
            methods.add(node.target)
        elif node.op == "call_function":
            name = (
                str(node.target) if isinstance(node.target, torch._ops.OpOverload) else qualified(node.target)
            )
            if functions.setdefault(name, node.target) is not node.target:
                ambiguous.add(name)
            if node.target is getattr and isinstance(node.args[1], str):
                attributes.add(node.args[1])
    kept = {name: function for name, function in functions.items() if name not in ambiguous}
    return Vocabulary(kept, frozenset(methods), frozenset(attributes))
