"""Lists and dicts that a caller hands to a module, which may write to them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils import _pytree as pytree

from sparsefx.passes.capture.assignable import NotReplayable

_Container = list[Any] | dict[Any, Any]


class Handed:
    """The lists and dicts among the arguments of a forward, and what they held before it.

    Args:
        arguments: positional and keyword arguments.
    """

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self._before = [(container, container.copy()) for container in _containers(arguments)]

    def changed(self) -> list[tuple[_Container, _Container]]:
        """The containers that were written to since then, and what they held."""
        return [(container, before) for container, before in self._before if not _is_same(container, before)]

    def restore(self) -> list[_Container]:
        """Undo what was written since then; the containers that were written to.

        Raises:
            NotReplayable: one has got more or fewer entries.
        """
        changed = self.changed()
        grown = any(_keys(container) != _keys(before) for container, before in changed)
        for container, before in changed:
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)
        if grown:
            raise NotReplayable("it calls a module that adds to a list or dict which it is handed")
        return [container for container, _ in changed]

    def call(self, changed: list[_Container], create: Callable[..., Any], leaf: Callable[..., Any]) -> Any:
        """Call a leaf on containers of the graph, and read what it wrote to them.

        Args:
            changed: the containers that it writes to.
            create: makes a node that calls a function.
            leaf: makes the node that calls the leaf.
        """
        made = {id(container): create(type(container), (container.copy(),)) for container in changed}
        args, kwargs = pytree.tree_map(
            lambda part: made.get(id(part), part), self.arguments, is_leaf=lambda part: id(part) in made
        )
        result = leaf(args, kwargs)
        for container in changed:
            for key in _keys(container):
                container[key] = create(operator.getitem, (made[id(container)], key))
        return result


def _containers(tree: Any) -> Iterator[_Container]:
    if type(tree) in (list, dict):
        yield tree
    if isinstance(tree, (tuple, list, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(part)


def _keys(container: _Container) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def _is_same(container: Any, before: Any) -> bool:
    keys = _keys(container)
    return keys == _keys(before) and all(container[key] is before[key] for key in keys)
