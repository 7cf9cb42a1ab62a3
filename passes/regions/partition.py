r"""Divide the nodes of a graph that a backend supports into the largest parts that can be one node each.

Where ``u`` is not supported, ``a`` and ``b`` must not share a part: it would read ``u``, which reads ``a``::

    a ---> c ---> b            [a c] ---> [b]
     \         /       =>        \      /
      `-> u --'                   `-> u

The graph is contracted a node at a time. Two neighbours become one node unless a path of two or more edges
joins them, which would become a cycle. A pair that is refused once need not be tried again. By induction its
path passes a node that is not supported: an edge of it with two supported ends is a pair that was refused,
with such a path of its own. That node is never merged, so the path stays.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


def partition(sources: Mapping[T, Collection[T]], supported: AbstractSet[T]) -> list[tuple[T, ...]]:
    """The parts: connected, no two of them in a cycle, and no two neighbours that could be one part.

    Two nodes are neighbours if one reads the other, or both read the same node, supported or not.

    It takes at most two searches of the graph a supported node, and none for nodes that read one part only.

    Args:
        sources: what each node of the graph reads; the nodes in topological order.
        supported: the nodes to divide.

    Returns:
        Parts in the order of their first nodes, each with its nodes in the order of the graph.
    """
    contracted: _Contracted[T] = _Contracted()
    readers: dict[T, list[T]] = {}  # of each node, one of every part that reads it
    for node, read in sources.items():
        contracted.add(node, read)
        if node in supported:
            above = [source for source in read if source in supported]
            siblings = [reader for source in read for reader in readers.get(source, ())]
            contracted.merge_neighbours(node, above + siblings)
            for source in read:
                readers[source] = contracted.distinct([*readers.get(source, ()), node])
    return contracted.parts(node for node in sources if node in supported)


class _Contracted(Generic[T]):
    """An acyclic graph some of whose nodes were merged. A part is named by one of its nodes."""

    def __init__(self) -> None:
        self._name: dict[T, T] = {}
        self._members: dict[T, list[T]] = {}
        self._above: dict[T, set[T]] = {}
        self._below: dict[T, set[T]] = {}

    def add(self, node: T, read: Iterable[T]) -> None:
        """Add a node that nothing reads so far."""
        self._name[node], self._members[node] = node, [node]
        self._above[node], self._below[node] = {self._name[source] for source in read}, set()
        for part in self._above[node]:
            self._below[part].add(node)

    def merge_neighbours(self, node: T, neighbours: Iterable[T]) -> None:
        """Merge the part of a node with those of its neighbours, one after the other, without a cycle."""
        blocked = self._blocked(node)
        for neighbour in neighbours:
            part, own = self._name[neighbour], self._name[node]
            if part != own and part not in blocked:
                self._merge(part, own)
                blocked = self._blocked(self._name[node])

    def distinct(self, nodes: Iterable[T]) -> list[T]:
        """The names of the parts of some nodes, each once."""
        return list(dict.fromkeys(self._name[node] for node in nodes))

    def parts(self, nodes: Iterable[T]) -> list[tuple[T, ...]]:
        """Some nodes by their parts, in the given order."""
        groups: dict[T, list[T]] = {}
        for node in nodes:
            groups.setdefault(self._name[node], []).append(node)
        return [tuple(group) for group in groups.values()]

    def _blocked(self, part: T) -> set[T]:
        """The parts that a path of two or more edges joins with this one."""
        above, below = self._above[part], self._below[part]
        if len(above) < 2 and not below:  # its neighbours are the one source and what reads that
            return set()
        return _reached(self._above, above) | _reached(self._below, below)

    def _merge(self, first: T, second: T) -> None:
        """Make two parts one, under the name of the larger, so that a node changes its part rarely."""
        small, large = sorted((first, second), key=self._size)
        for edges, reverse in ((self._above, self._below), (self._below, self._above)):
            for part in edges.pop(small):
                reverse[part].discard(small)
                if part != large:
                    edges[large].add(part)
                    reverse[part].add(large)
        self._name |= dict.fromkeys(self._members[small], large)
        self._members[large] += self._members.pop(small)

    def _size(self, part: T) -> int:
        return len(self._members[part]) + len(self._above[part]) + len(self._below[part])


def _reached(edges: Mapping[T, AbstractSet[T]], parts: Iterable[T]) -> set[T]:
    """What one or more edges lead to from any of some parts."""
    reached: set[T] = set()
    waiting = [*parts]
    while waiting:  # each part is put here once as a start and once when it is reached
        new = edges[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached
