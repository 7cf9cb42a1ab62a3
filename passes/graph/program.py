"""The ATen program of a graph: the operations that each node computes, recorded by running it on examples.

Modules, functionals, methods and operators all end in a few ATen operations, so the analyses read these.
Each recorded call has the graph node that it comes from. Tensors become values in single
assignment form: an operation that writes in place makes a new value of the same tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sparsefx.passes.running.leaves import tensors_in


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
        kwargs: its keyword arguments, with each tensor replaced by its :class:`Value`.
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
        """The operator's name without its overload, ``convolution``; if not ATen's own, ``library::name``."""
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
    """

    calls: list[Call] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    node_values: dict[fx.Node, list[Value]] = field(default_factory=dict)
    node_inputs: dict[fx.Node, list[Value]] = field(default_factory=dict)
    constants: list[Value] = field(default_factory=list)
    example: tuple[Any, ...] = ()
    result: Any = None

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
