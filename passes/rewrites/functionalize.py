"""Turn writes in place into new values, wherever nothing else can see the write.

A residual block's ``out += identity`` becomes ``out + identity``, the only form that the passes after this
one need to know. A write that something sees stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.in_place import FUNCTIONAL
from sparsefx.passes.graph.recorder import written_tensors
from sparsefx.passes.manager.pipeline import Outcome
from sparsefx.passes.running.eager_mode import EagerMode
from sparsefx.passes.running.examples import Inputs
from sparsefx.passes.running.interpreter import Interpreter
from sparsefx.passes.running.leaves import tensors_in
from sparsefx.passes.running.untouched import untouched

_METHODS = {"add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div"}

# What returns its operand, a view of it, or a copy, as sizes and strides have it.
_COPIES = frozenset({"clone", "_to_copy", "contiguous", "_reshape_alias"})
_ALWAYS_COPIES = frozenset({"clone", torch.clone})


@dataclass(frozen=True)
class Functionalize:
    """Replace augmented assignments and methods such as ``add_`` by the operators that make new values.

    The pass observes which writes are seen, by running the graph at each size. A write is seen if it
    reaches an input of the graph, a parameter or a buffer, or memory that a node reads afterwards under the
    name of an earlier node.
    """

    name = "functionalize"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the calls in place."""
        found = [node for node in graph_module.graph.nodes if _functional(node) is not None]
        if found:
            needed = _needed(graph_module, analyses.inputs)
            found = [node for node in found if node not in needed]
        for node in found:
            node.target = _functional(node)
        return Outcome(bool(found), f"{len(found)} writes made values")


def _functional(node: fx.Node) -> Any:
    """The function or method that gives the same as a new value; None for another node."""
    if node.op == "call_function":
        return FUNCTIONAL.get(node.target)
    return _METHODS.get(str(node.target)) if node.op == "call_method" else None


@torch.no_grad()
def _needed(graph_module: fx.GraphModule, inputs: Inputs) -> set[fx.Node]:
    """The nodes that have to write, as runs at each size show.

    The smallest size comes first. Where no other tensor looks into what is written, none does at another size
    either, so that one run is enough: how far views overlap is all that follows the sizes.
    """
    needed = set[fx.Node]()
    for values in sorted(inputs, key=lambda values: sum(tensor.numel() for tensor in tensors_in(values))):
        with untouched(graph_module, values) as copies:
            observer = _Observer(graph_module)
            observer.run(*copies)
        needed |= observer.needed
        if not observer.shared:
            break
    return needed


class _Observer(Interpreter):
    """Runs a graph and notes which writes are seen.

    The tensors that nodes give are known. A write is noted at each known tensor that shares an element with
    what is written. A node sees the write if it reads such a tensor as the result of an earlier node.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.needed: set[fx.Node] = set()
        self.shared = False  # whether another tensor looks into what is written, or may
        self.memory = _Memory()
        self._position: dict[fx.Node, int] = {}
        self._writes: dict[int, list[fx.Node]] = {}  # tensor -> the nodes that wrote into its memory
        self._outside = [*module.parameters(), *module.buffers()]
        for tensor in self._outside:
            self.memory.add(tensor)

    def run_node(self, n: fx.Node) -> Any:
        self._position[n] = len(self._position)
        for source in n.all_input_nodes:
            self._note_stale(source)
        if _functional(n) is not None and self._converts(n):
            self.needed.add(n)
        with _Writes(self.memory, n.target not in _ALWAYS_COPIES) as writes:
            result = super().run_node(n)
        for tensor in writes.written:
            self.shared = self.shared or self.memory.is_shared(tensor)
            for other in self.memory.overlapping(tensor):
                self._writes.setdefault(id(other), []).append(n)
        self._note_outside(n, result)
        for tensor in tensors_in(result):
            self.memory.add(tensor)
        return result

    def _note_stale(self, source: fx.Node) -> None:
        for tensor in tensors_in(self.env[source]):
            late = (w for w in self._writes.get(id(tensor), ()) if self._position[w] > self._position[source])
            self.needed.update(late)

    def _note_outside(self, node: fx.Node, result: Any) -> None:
        if node.op in ("placeholder", "get_attr"):
            self._outside += tensors_in(result)
        elif any(node in self._writes.get(id(tensor), ()) for tensor in self._outside):
            self.needed.add(node)

    def _converts(self, node: fx.Node) -> bool:
        """Whether a write casts: the operator that makes a new value would give another type."""
        args, _ = self.fetch_args_kwargs_from_env(node)
        numbers = (Tensor, int, float, complex)
        if not isinstance(args[0], Tensor) or len(args) < 2 or not isinstance(args[1], numbers):
            return True
        return torch.result_type(args[0], args[1]) != args[0].dtype


class _Writes(EagerMode):
    """Notes the tensors that operations write, and what may be a view at other strides."""

    def __init__(self, memory: _Memory, links: bool) -> None:
        super().__init__()
        self.memory, self.links = memory, links
        self.written: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.written += written_tensors(func, args, kwargs or {})
        if self.links and func.overloadpacket.__name__ in _COPIES:
            self.memory.link(args[0], result)
        return result


class _Memory:
    """The tensors that are known, by the memory that they look into or may look into."""

    def __init__(self) -> None:
        self._groups: dict[int, int] = {}
        self._tensors: dict[int, dict[int, Tensor]] = {}

    def add(self, tensor: Tensor) -> None:
        """Know a tensor; it is kept alive, so that no other one gets its id or its memory."""
        self._tensors.setdefault(self._group(tensor), {})[id(tensor)] = tensor

    def link(self, one: Tensor, other: Tensor) -> None:
        """Note that two tensors might have one memory."""
        kept, gone = self._group(one), self._group(other)
        if kept != gone:
            self._groups = {key: kept if group == gone else group for key, group in self._groups.items()}
            self._tensors.setdefault(kept, {}).update(self._tensors.pop(gone, {}))
        self.add(one)
        self.add(other)

    def is_shared(self, tensor: Tensor) -> bool:
        """Whether another known tensor has, or may have, the memory of one."""
        self.add(tensor)
        return len(self._tensors[self._group(tensor)]) > 1

    def overlapping(self, tensor: Tensor) -> list[Tensor]:
        """The known tensors that have, or may have, an element in common with one."""
        self.add(tensor)
        return [other for other in self._tensors[self._group(tensor)].values() if _overlap(tensor, other)]

    def _group(self, tensor: Tensor) -> int:
        key = tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)
        return self._groups.setdefault(key, key)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one group have an element in common; yes if that is not known."""
    if one is other:
        return True
    if torch.strided not in (one.layout, other.layout) or one.dtype != other.dtype:
        return True
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return True
    if not one.numel() or not other.numel():
        return False
    size = one.untyped_storage().nbytes() // one.element_size()
    if size in (one.numel(), other.numel()):
        return True
    marks = torch.zeros(size, dtype=torch.bool)
    _same_view(marks, one).fill_(True)
    return bool(_same_view(marks, other).any())


def _same_view(marks: Tensor, tensor: Tensor) -> Tensor:
    return marks.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
