"""Example calls of a model at several sizes: what tells a fixed size from one that follows the input."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsefx.passes.running.suppress_stderr import suppress_stderr

Example = Mapping[str, Any]
"""One call of a forward: its arguments by name, defaults included, in the order of its signature."""

Examples = Sequence[Example]
"""The same call at several sizes; the user's own comes first."""

Inputs = Sequence[tuple[Any, ...]]
"""Positional arguments of a graph, for each example."""

_LARGE = 128  # sizes from here on are halved, which is cheap to run; smaller ones are doubled
_SMALL = 4  # below this doubled sizes may be alike after a stride


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


def at_other_sizes(run: Callable[[tuple[Any, ...]], Any], inputs: tuple[Any, ...]) -> Inputs:
    """The inputs, and copies of them in other sizes that the model takes too.

    Dimensions of equal size change together first, since they usually mean the same (batch, height and
    width, the steps of two sequences), and one by one where that is refused. What no trial run
    accepts is taken as fixed.

    Args:
        run: calls the model with positional arguments, and raises for sizes that it does not accept;
            returns its outputs.
        inputs: the example inputs.
    """
    if not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in pytree.tree_leaves(inputs)):
        return [inputs]
    try:
        before = _shapes(run(inputs))
    except Exception:  # a part that cannot be called twice in the same way
        return [inputs]

    def takes(other: tuple[Any, ...]) -> bool:
        try:
            with suppress_stderr():
                outputs = run(other)
        except Exception:  # the model refuses a size in its own way
            return False
        return not _loses_samples(_shapes(inputs), before, _shapes(other), _shapes(outputs))

    groups = _groups(inputs)
    found = [(places, _change(takes, inputs, [places])) for places in groups]
    single = sorted(place for places, change in found if change is None for place in places)
    found += [([place], _change(takes, inputs, [[place]])) for place in single if [place] not in groups]
    refused = [places for places, change in found if change is None and places in groups]
    lengths = [places for places in groups if all(dim for _, dim in places)]
    for one, other in itertools.combinations(lengths, 2):
        if one not in refused and other not in refused:
            continue
        found.append(([*one, *other], _change(takes, inputs, [one, other])))  # lengths that go together
    accepted = [places for places, change in found if change is not None]
    changes = [change for _, change in found if change is not None]
    together = _change(takes, inputs, accepted) if len(accepted) > 1 else None
    return [inputs, *(changes if together is None else [together])]


def at_unusual_sizes(example: Example) -> list[Example]:
    """Copies of a call with sizes that trials do not have.

    Dimensions of one size together, and each by itself, are cut to a single index and made longer by one:
    lengths that are usually alike then differ, and even ones are odd.
    """
    groups = _groups((example,))
    places = [place for group in groups for place in group]
    chosen = [*groups, *([place] for group in groups if len(group) > 1 for place in group), places]
    changes: list[Callable[[int, int], int]] = [lambda dim, size: 1, lambda dim, size: size + 1]
    return [_resized((example,), set(some), change)[0] for some in chosen for change in changes]


_Place = tuple[int, int]  # which tensor leaf, which dimension


def _groups(inputs: tuple[Any, ...]) -> list[list[_Place]]:
    """Dimensions of the tensors, those of one size together; of one tensor, the first by itself."""
    groups: dict[Any, list[_Place]] = {}
    for number, leaf in enumerate(pytree.tree_leaves(inputs)):
        if isinstance(leaf, Tensor) and not leaf.is_nested:
            for dim, size in enumerate(leaf.shape):
                groups.setdefault((dim == 0, size), []).append((number, dim))
    return list(groups.values())


def _change(
    takes: Callable[[tuple[Any, ...]], bool], inputs: tuple[Any, ...], groups: list[list[_Place]]
) -> tuple[Any, ...] | None:
    """The inputs with some dimensions changed in the first way that the model takes."""
    places = {place for group in groups for place in group}
    leaves = pytree.tree_leaves(inputs)
    for change in _changes():
        sizes = [
            (leaves[number].shape[dim], change(dim, leaves[number].shape[dim])) for number, dim in places
        ]
        if all(min(size, 2) <= changed for size, changed in sizes):  # a size of 1 would be broadcast
            other: tuple[Any, ...] = _resized(inputs, places, change)
            if takes(other):
                return other
    return None


_Shapes = list[torch.Size]


def _shapes(values: Any) -> _Shapes:
    leaves = pytree.tree_leaves(values)
    return [leaf.shape for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]


def _loses_samples(inputs: _Shapes, outputs: _Shapes, its_inputs: _Shapes, its_outputs: _Shapes) -> bool:
    """Whether samples no longer have one result each: ``view(-1, 400)`` takes any size, but means one."""
    batch = inputs[0][0]
    if its_inputs[0][0] != batch:
        return False
    return any(
        shape[0] == batch != its_shape[0] for shape, its_shape in zip(outputs, its_outputs, strict=False)
    )


def _changes() -> Iterator[Callable[[int, int], int]]:
    """Ways to change a size, by dimension and present size; the batch only ever grows by one."""
    yield lambda dim, size: size + 1 if dim == 0 else (size // 2 if size >= _LARGE else _grown(size))
    yield lambda dim, size: size + 1 if dim == 0 else 2 * size
    yield lambda dim, size: size + 1 if dim == 0 else size + max(2, size // 2)
    yield lambda dim, size: size + 1
    yield lambda dim, size: size + 1 if dim == 0 else size + 32
    yield lambda dim, size: 2 * size
    yield lambda dim, size: size + 1 if dim == 0 else size - 1  # the example may be as long as it can be
    yield lambda dim, size: size + 1 if dim == 0 else size // 2


def _grown(size: int) -> int:
    return 4 * size if size < _SMALL else 2 * size


def _resized(inputs: tuple[Any, ...], places: set[_Place], change: Callable[[int, int], int]) -> Any:
    leaves, spec = pytree.tree_flatten(inputs)
    for number, dim in sorted(places):
        leaf = leaves[number]
        size = leaf.shape[dim]
        leaves[number] = leaf.index_select(
            dim, torch.arange(change(dim, size), device=leaf.device) % max(size, 1)
        )
    return pytree.tree_unflatten(leaves, spec)
