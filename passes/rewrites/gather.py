"""Read and write only the channels of a residual stream that a layer uses."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.graph.layers import follow_weight, replace_layer, sole_contractions
from sparsefx.passes.graph.origins import columns_of, rows_of
from sparsefx.passes.graph.program import Program, Value
from sparsefx.passes.manager.pipeline import Outcome
from sparsefx.passes.running.timing import When, is_faster

_ADDITIONS = frozenset({operator.add, torch.add, "add"})


@dataclass(frozen=True)
class Gather:
    """Gather before a layer that reads few of its input channels; scatter after one that writes few.

    A residual stream keeps every channel that any of its layers needs. A layer that uses some of them
    can select those first (``index_select``), and one with empty rows can add the others' results to
    the stream directly (``index_add``). That costs a copy, so with ``"auto"`` both forms are timed on
    this machine at the example's size, and the faster one stays.

    Attributes:
        when: ``"auto"``, ``"never"`` or ``"always"``.
    """

    when: When = "auto"
    name = "gather"

    def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
        """Rewrite the graph in place. Runs after unneeded channels were removed."""
        if self.when == "never":
            return Outcome(False, "not asked for")
        layers = {
            node: layer for node, layer in sole_contractions(graph_module).items() if _is_wasteful(layer)
        }
        if not layers:
            return Outcome(False, "0 gathers, 0 scatters")
        program = analyses.program_of_first
        gathers = scatters = 0
        for node, layer in layers.items():
            if _has_empty_columns(layer):
                gathers += self._gather(graph_module, program, node, layer)
            if _has_empty_rows(layer):
                scatters += self._scatter(graph_module, program, node, layer)
        considered = f"of {len(layers)} layers with unused channels"
        return Outcome(gathers + scatters > 0, f"{gathers} gathers, {scatters} scatters, {considered}")

    def _gather(
        self, graph_module: fx.GraphModule, program: Program, node: fx.Node, layer: nn.Linear | _ConvNd
    ) -> bool:
        source = program.node_inputs[node][0]
        dim, used = _channel_dim(layer, source), _columns(layer)
        smaller = _selected(layer, columns=used)
        x = _example(source, layer)
        if not self._pays(lambda: layer(x), lambda: smaller(x.index_select(dim, used))):
            return False
        replace_layer(graph_module, node, smaller)
        graph = graph_module.graph
        with graph.inserting_before(node):
            index = graph.get_attr(_add_index(graph_module, f"{node.name}_inputs", used))
            place = dim - len(source.shape)  # from the back, where the channels are at every rank
            node.args = (graph.call_function(torch.index_select, (node.args[0], place, index)),)
        return True

    def _scatter(
        self, graph_module: fx.GraphModule, program: Program, node: fx.Node, layer: nn.Linear | _ConvNd
    ) -> bool:
        source, result = program.node_inputs[node][0], program.node_values[node][0]
        addition = _addition(node)
        if addition is None or not _adds_to_equal(program, addition, node):
            return False
        dim, used = _channel_dim(layer, result), _rows(layer)
        current = graph_module.get_submodule(str(node.target))
        assert isinstance(current, (nn.Linear, _ConvNd))
        smaller, constant = _selected(current, rows=used), _constant(current, used)
        x = _example(source, layer)
        x = x if current is layer else x.index_select(dim, _columns(layer))
        stream = torch.zeros(result.shape, dtype=x.dtype, device=x.device)

        def scattered() -> Tensor:
            base = stream if constant is None else stream + _shaped(constant, result.shape[dim + 1 :])
            return base.index_add(dim, used, smaller(x))

        if not self._pays(lambda: stream + current(x), scattered):
            return False
        replace_layer(graph_module, node, smaller)
        graph = graph_module.graph
        other = next(operand for operand in addition.args if operand is not node)
        with graph.inserting_before(addition):
            if constant is not None:
                name = f"{node.name}_constants"
                graph_module.register_buffer(name, _shaped(constant, result.shape[dim + 1 :]))
                other = graph.call_function(torch.add, (other, graph.get_attr(name)))
            index = graph.get_attr(_add_index(graph_module, f"{node.name}_outputs", used))
            added = graph.call_function(torch.index_add, (other, dim - len(result.shape), index, node))
        addition.replace_all_uses_with(added)
        graph.erase_node(addition)
        return True

    def _pays(self, present: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
        return self.when == "always" or is_faster(other, present)


def _is_simple(layer: nn.Linear | _ConvNd) -> bool:
    if isinstance(layer, _ConvTransposeNd):
        return False
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and layer.padding_mode == "zeros")


def _is_wasteful(layer: nn.Linear | _ConvNd) -> bool:
    return _is_simple(layer) and (_has_empty_columns(layer) or _has_empty_rows(layer))


def _columns(layer: nn.Linear | _ConvNd) -> Tensor:
    """The input channels that some output reads; at least one."""
    used = layer.weight.ne(0).transpose(0, 1).flatten(1).any(1)
    return _at_least_one(used)


def _rows(layer: nn.Linear | _ConvNd) -> Tensor:
    """The output channels that read some input; at least one."""
    return _at_least_one(layer.weight.ne(0).flatten(1).any(1))


def _at_least_one(used: Tensor) -> Tensor:
    return (
        used.nonzero().flatten() if bool(used.any()) else torch.zeros(1, dtype=torch.long, device=used.device)
    )


def _has_empty_columns(layer: nn.Linear | _ConvNd) -> bool:
    return len(_columns(layer)) < layer.weight.shape[1]


def _has_empty_rows(layer: nn.Linear | _ConvNd) -> bool:
    return len(_rows(layer)) < layer.weight.shape[0]


def _channel_dim(layer: nn.Linear | _ConvNd, value: Value) -> int:
    return len(value.shape) - 1 - (0 if isinstance(layer, nn.Linear) else len(layer.kernel_size))


def _example(source: Value, layer: nn.Linear | _ConvNd) -> Tensor:
    return torch.randn(source.shape, dtype=layer.weight.dtype, device=layer.weight.device)


@torch.no_grad()
def _selected(
    layer: nn.Linear | _ConvNd, rows: Tensor | None = None, columns: Tensor | None = None
) -> nn.Linear | _ConvNd:
    """A copy of a layer with some of its rows or columns."""
    copied = type(layer).__new__(type(layer))
    copied.__dict__.update(layer.__dict__)
    copied._parameters = dict(layer._parameters)
    if rows is not None:
        copied.weight = rows_of(layer.weight, rows)
        if layer.bias is not None:
            copied.bias = rows_of(layer.bias, rows)
    if columns is not None:
        copied.weight = columns_of(copied.weight, columns)
    weight = copied.weight
    positions = weight.shape[2:]
    follow_weight(
        copied, torch.Size((weight.shape[1], *positions)), torch.Size((weight.shape[0], *positions))
    )
    return copied


def _add_index(graph_module: fx.GraphModule, name: str, index: Tensor) -> str:
    graph_module.register_buffer(name, index)
    return name


def _constant(layer: nn.Linear | _ConvNd, rows: Tensor) -> Tensor | None:
    """What the rows that are left out add; None where that is nothing."""
    if layer.bias is None:
        return None
    constant = layer.bias.detach().clone().index_fill(0, rows, 0)
    return constant if bool(constant.any()) else None


def _shaped(constant: Tensor, positions: torch.Size) -> Tensor:
    return constant.view(-1, *(1,) * len(positions))


def _addition(node: fx.Node) -> fx.Node | None:
    """The residual addition that alone reads a node, if both operands have one shape."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    operands = user.args
    if user.target not in _ADDITIONS or user.kwargs or len(operands) != 2 or operands[0] is operands[1]:
        return None
    return user if all(isinstance(operand, fx.Node) for operand in operands) else None


def _adds_to_equal(program: Program, addition: fx.Node, node: fx.Node) -> bool:
    """Whether a layer's result is added to something of its own shape, without broadcasting."""
    other = next(operand for operand in addition.args if operand is not node)
    assert isinstance(other, fx.Node)
    if other not in program.node_values:  # made by this pass: the stream so far, or constants to add to it
        return other.op != "get_attr"
    values = program.node_values[other]
    return bool(values) and values[0].shape == program.node_values[node][0].shape
