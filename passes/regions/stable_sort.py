"""Bring the nodes of a graph into an order in which each follows what it reads."""

from __future__ import annotations

import heapq
import itertools

from torch import fx


def stable_sort(graph: fx.Graph) -> None:
    """Sort the nodes topologically: of those that may come next always the first in the present order.

    Takes a step for each node and edge. No node is lost, whether or not something reads it.

    Args:
        graph: a graph without a cycle.
    """
    nodes = [*graph.nodes]
    position = {node: index for index, node in enumerate(nodes)}
    missing = [len(node.all_input_nodes) for node in nodes]
    ready = [index for index, count in enumerate(missing) if not count]  # sorted, so a heap
    order: list[fx.Node] = []
    while ready:  # each node is pushed once, when its last source is placed
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for user in node.users:
            missing[position[user]] -= 1
            if not missing[position[user]]:
                heapq.heappush(ready, position[user])
    for before, after in itertools.pairwise(order):
        if before.next is not after:
            before.append(after)
