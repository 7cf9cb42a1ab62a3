"""Example calls of a model at several sizes: what tells a fixed size from one that follows the input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from sparsefx.passes.running.trials import groups_of, resized

Example = Mapping[str, Any]
"""One call of a forward: its arguments by name, defaults included, in the order of its signature."""

Examples = Sequence[Example]
"""The same call at several sizes; the user's own comes first."""

Inputs = Sequence[tuple[Any, ...]]
"""Positional arguments of a graph, for each example."""


def bind(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Example:
    """The arguments of one call by name: those of ``**kwargs`` beside the others, ``*args`` as ``"*args"``.

    Raises:
        TypeError: the forward does not take these arguments.
    """
    signature = inspect.signature(model.forward)
    arguments = signature.bind(*args, **kwargs)
    arguments.apply_defaults()
    example: dict[str, Any] = {}
    for name, value in arguments.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            example.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            example[f"*{name}"] = value
        else:
            example[name] = value
    return example


def call(function: Callable[..., Any], example: Example) -> Any:
    """Call a function with bound arguments."""
    values: list[Any] = []
    named: dict[str, Any] = {}
    for name, value in example.items():
        if name.startswith("*"):
            values, named = [*named.values(), *value], {}
        else:
            named[name] = value
    return function(*values, **named)


def graph_inputs(graph: fx.Graph, examples: Examples) -> Inputs:
    """The positional arguments of a captured graph for each example."""
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    inputs = []
    for example in examples:
        values: list[Any] = []
        for name in names:
            values.extend(example[name]) if name.startswith("*") else values.append(example[name])
        inputs.append(tuple(values))
    return inputs


def at_unusual_sizes(example: Example) -> list[Example]:
    """Copies of a call with sizes that trials do not have.

    Dimensions of one size together, and each by itself, are cut to a single index and made longer by one:
    lengths that are usually alike then differ, and even ones are odd.
    """
    groups, leaves = groups_of(example), pytree.tree_leaves(example)
    places = [place for group in groups for place in group]
    chosen = [*groups, *([place] for group in groups if len(group) > 1 for place in group), places]
    found = []
    for some in chosen:
        found.append(resized(example, dict.fromkeys(some, 1)))
        found.append(resized(example, {(leaf, dim): leaves[leaf].shape[dim] + 1 for leaf, dim in some}))
    return found
