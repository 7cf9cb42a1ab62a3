"""A graph as plain data, and back: no code in it, and none made from what was not checked.

``torch.fx`` writes Python source from the names in a graph, so every name is checked both when a graph is
written and when one is read.
"""

from __future__ import annotations

import keyword
import re
from typing import Any

from torch import fx, nn

from sparsefx.passes.serialize.plain_values import DataError, decode_value, encode_value, fields
from sparsefx.passes.serialize.vocabulary import Names, name_of

_ASCII_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ATTRIBUTE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ -]*")
_MAX_PARTS = 100
_NODE = {"name": str, "op": str, "target": str, "args": list, "kwargs": list}
_OPERATIONS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")


def encode_graph(graph: fx.Graph) -> list[dict[str, Any]]:
    """A graph as plain data, a row a node.

    Raises:
        DataError: a node has an argument or a name that plain data cannot hold; it is named.
    """
    if type(graph._codegen) is not fx.graph.CodeGen:
        raise DataError("the graph generates its code in a way of its own (a torch.export module, say)")
    return [_encode_node(node) for node in graph.nodes]


def _encode_node(node: fx.Node) -> dict[str, Any]:
    try:
        target = name_of(node.target) if callable(node.target) else node.target
        row = {
            "name": check_name(node.name),
            "op": node.op,
            "target": target,
            "args": [encode_value(argument) for argument in node.args],
            "kwargs": [[check_name(key), encode_value(value)] for key, value in node.kwargs.items()],
        }
        _check_target(node.op, target)
    except DataError as error:
        raise DataError(f"node {node.name!r}: {error}") from error
    return {**row, "wrapped": True} if node.meta.get("is_wrapped") else row


def decode_graph(rows: list[Any], names: Names, root: nn.Module) -> fx.Graph:
    """The graph that plain data stands for.

    Args:
        rows: what :func:`encode_graph` made, or anything else.
        names: the functions, methods and attributes that it may use.
        root: the module whose submodules, parameters and buffers it may use.

    Raises:
        DataError: it is no valid graph, or uses something that it may not.
    """
    graph = fx.Graph()
    reachable = _Reachable(root)
    nodes: dict[str, fx.Node] = {}
    for position, row in enumerate(rows):
        node = fields(row, f"node {position}", _NODE, {"wrapped": bool})
        try:
            nodes[node["name"]] = _decode_node(graph, node, nodes, names, reachable)
        except DataError as error:
            raise DataError(f"node {node['name'][:80]!r}: {error}") from error
    if [row["op"] for row in rows].count("output") != 1 or rows[-1]["op"] != "output":
        raise DataError("a graph has not exactly one output, at its end")
    return graph


class _Reachable:
    """What a graph over a module may call and read."""

    def __init__(self, root: nn.Module) -> None:
        self.modules = {
            name
            for name, module in root.named_modules(remove_duplicate=False)
            if name and type(module) is not nn.Module  # which has no forward
        }
        self.tensors = {name for name, _ in root.named_parameters(remove_duplicate=False)}
        self.tensors |= {name for name, _ in root.named_buffers(remove_duplicate=False)}


def _decode_node(
    graph: fx.Graph, row: dict[str, Any], nodes: dict[str, fx.Node], names: Names, reachable: _Reachable
) -> fx.Node:
    name, op, target = check_name(row["name"]), row["op"], row["target"]
    _check_target(op, target)
    args = tuple(decode_value(argument, nodes) for argument in row["args"])
    kwargs = dict(_keyword(pair, nodes) for pair in row["kwargs"])
    if op == "call_function":
        target = names.function(target)
        if target is getattr:
            _check_getattr(args, kwargs, names)
    elif op == "call_method":
        names.check_method(target)
        if not args or not isinstance(args[0], fx.Node):
            raise DataError("a method is called on something else than a node's result")
    elif op in ("call_module", "get_attr") and target not in (
        reachable.modules if op == "call_module" else reachable.tensors
    ):
        raise DataError(f"{target[:80]!r} is not in the model")
    if op in ("placeholder", "output") and (kwargs or len(args) != (1 if op == "output" else len(args[:1]))):
        raise DataError(f"its {op} has the wrong arguments")
    node = graph.create_node(op, target, args, kwargs, name)
    if node.name != name:
        raise DataError("its name is taken or reserved")
    if row.get("wrapped", False):
        node.meta["is_wrapped"] = True  # a later trace of the generated code stops at this function
    return node


def _keyword(pair: Any, nodes: dict[str, fx.Node]) -> tuple[str, Any]:
    if type(pair) is not list or len(pair) != 2:
        raise DataError("a keyword argument is not a pair")
    return check_name(pair[0]), decode_value(pair[1], nodes)


def _check_getattr(args: tuple[Any, ...], kwargs: dict[str, Any], names: Names) -> None:
    if kwargs or len(args) not in (2, 3) or not isinstance(args[0], fx.Node) or type(args[1]) is not str:
        raise DataError("getattr has the wrong arguments")
    names.check_attribute(args[1])


def _check_target(op: str, target: Any) -> None:
    """Refuse targets that could become anything but a name in the code that fx generates."""
    if op not in _OPERATIONS or type(target) is not str:
        raise DataError(f"an operation {str(op)[:80]!r} or its target is unknown")
    if op == "placeholder":
        check_name(re.sub(r"^\*\*?", "", target))
    elif op == "call_method":
        check_name(target)
    elif op in ("get_attr", "call_module"):
        check_path(target)
    elif op == "output" and target != "output":
        raise DataError("its output has another target than 'output'")


def check_name(name: Any) -> str:
    """A plain Python name.

    Raises:
        DataError: it is something else.
    """
    if type(name) is not str or not _ASCII_NAME.fullmatch(name) or keyword.iskeyword(name):
        raise DataError(f"{str(name)[:80]!r} is not a plain Python name")
    return name


def check_path(path: Any) -> str:
    """The dotted path of a module or tensor.

    Raises:
        DataError: it is something else, or too long.
    """
    if str(path).count(".") >= _MAX_PARTS:
        raise DataError(f"path {str(path)[:80]!r} has more than {_MAX_PARTS} parts")
    for part in str(path).split("."):
        if not _ATTRIBUTE_NAME.fullmatch(part) or keyword.iskeyword(part):
            raise DataError(f"{str(path)[:80]!r} is not a path of plain names")
    return str(path)
