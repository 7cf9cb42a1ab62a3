"""Where the nodes of a layered graph are drawn, and along which points its edges run.

After Sugiyama, Tagawa & Toda (1981): nodes are ranked by their longest way from an input, an edge over
several ranks becomes a lane through them, the ranks are ordered so that few edges cross, and then every
node moves as near to its neighbours as the order allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Edge = tuple[int, int]
Point = tuple[float, float]

_GAP = 16.0  # between neighbours in a rank
_RANK_GAP = 22.0
_LANE = 4.0  # width of a lane
_ROUNDS = 4  # down and up again; more change little


@dataclass(frozen=True)
class Layout:
    """A drawing's geometry in pixels; y points downwards.

    Attributes:
        corners: each node's upper left corner.
        lines: points of lines that are vertical at each; together they are the edges. What the edges of
            one node share is there once.
        width: of the whole.
        height: of the whole.
    """

    corners: list[Point]
    lines: list[list[Point]]
    width: float
    height: float


def lay_out(sizes: Sequence[tuple[float, float]], edges: Sequence[Edge]) -> Layout:
    """Place the nodes of a graph without cycles.

    Args:
        sizes: each node's width and height.
        edges: pairs of nodes, each from a lower to a higher one.
    """
    graph = _Layered(sizes, edges)
    graph.order()
    return graph.drawn(graph.columns())


class _Layered:
    """Nodes and lanes by rank. A lane is a node too; all edges of one node share theirs.

    Attributes:
        ranks: the nodes of each rank, from left to right.
        above: what each node is joined to in the rank above.
        below: what it is joined to in the rank below.
    """

    def __init__(self, sizes: Sequence[tuple[float, float]], edges: Sequence[Edge]) -> None:
        self.nodes = len(sizes)
        self.sizes = [*sizes]
        self.rank = _ranks(len(sizes), edges)
        self.above: dict[int, list[int]] = defaultdict(list)
        self.below: dict[int, list[int]] = defaultdict(list)
        self._lanes: dict[tuple[int, int], int] = {}  # (node, rank) -> the lane of its edges there
        for upper, lower in dict.fromkeys(link for edge in edges for link in pairwise(self._way(*edge))):
            self.below[upper].append(lower)
            self.above[lower].append(upper)
        self.ranks: list[list[int]] = [[] for _ in range(max(self.rank, default=-1) + 1)]
        for node, rank in enumerate(self.rank):
            self.ranks[rank].append(node)

    def order(self) -> None:
        """Sort every rank by the mean place of its neighbours, from above and from below in turn."""
        for ranks, neighbours in self._sweeps():
            for previous, rank in pairwise(ranks):
                place = {node: number / len(previous) for number, node in enumerate(previous)}
                own = {node: number / len(rank) for number, node in enumerate(rank)}
                means = {node: _mean([place[n] for n in neighbours[node]], own[node]) for node in rank}
                rank.sort(key=means.__getitem__)

    def columns(self) -> dict[int, float]:
        """Each node's centre, as near to the mean of its neighbours as the order of its rank allows."""
        packed = [self._packed(rank) for rank in self.ranks]
        x = {node: position for rank in packed for node, position in rank.items()}
        for ranks, neighbours in self._sweeps():
            for rank in ranks:
                offsets = packed[self.rank[rank[0]]]
                wanted = [_mean([x[n] for n in neighbours[node]], x[node]) - offsets[node] for node in rank]
                for node, shift in zip(rank, _nondecreasing(wanted), strict=True):
                    x[node] = offsets[node] + shift
        return x

    def drawn(self, x: dict[int, float]) -> Layout:
        """The geometry for given centres."""
        left = min((x[node] - self.sizes[node][0] / 2 for node in x), default=0.0)
        right = max((x[node] + self.sizes[node][0] / 2 for node in x), default=0.0)
        heights = [max(self.sizes[node][1] for node in rank) for rank in self.ranks]
        tops = [sum(heights[:rank]) + rank * _RANK_GAP for rank in range(len(heights))]

        def end(node: int, side: int) -> Point:
            """The middle of a node's upper (-1) or lower (1) side; a lane is as high as its rank."""
            rank = self.rank[node]
            height = self.sizes[node][1] if node < self.nodes else heights[rank]
            return x[node] - left, tops[rank] + (heights[rank] + side * height) / 2

        corners = [
            (end(node, -1)[0] - width / 2, end(node, -1)[1])
            for node, (width, _) in enumerate(self.sizes[: self.nodes])
        ]
        lines = [
            [*([end(upper, -1)] if upper >= self.nodes else []), end(upper, 1), end(lower, -1)]
            for upper in self.below
            for lower in self.below[upper]
        ]
        return Layout(corners, lines, right - left, tops[-1] + heights[-1] if tops else 0.0)

    def _way(self, source: int, target: int) -> list[int]:
        """The nodes that an edge runs through, lanes included."""
        lanes = [self._lane(source, rank) for rank in range(self.rank[source] + 1, self.rank[target])]
        return [source, *lanes, target]

    def _lane(self, source: int, rank: int) -> int:
        if (source, rank) not in self._lanes:
            self._lanes[source, rank] = len(self.sizes)
            self.sizes.append((_LANE, 0.0))
            self.rank.append(rank)
        return self._lanes[source, rank]

    def _sweeps(self) -> Iterator[tuple[list[list[int]], dict[int, list[int]]]]:
        """The ranks downwards with what is above, then upwards with what is below, and so on."""
        for _ in range(_ROUNDS):
            yield self.ranks, self.above
            yield self.ranks[::-1], self.below

    def _packed(self, rank: Sequence[int]) -> dict[int, float]:
        """The centres of a rank's nodes side by side."""
        x, end = {}, 0.0
        for node in rank:
            width = self.sizes[node][0]
            x[node] = end + width / 2
            end += width + _GAP
        return x


def _ranks(count: int, edges: Sequence[Edge]) -> list[int]:
    """The length of each node's longest way from a node that reads nothing."""
    ranks = [0] * count
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        ranks[target] = max(ranks[target], ranks[source] + 1)
    return ranks


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _nondecreasing(values: Sequence[float]) -> list[float]:
    """The nearest values, by the sum of squares, that do not decrease: runs that do become their mean."""
    runs: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while runs and runs[-1][0] > mean:
            before, number = runs.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        runs.append((mean, count))
    return [mean for mean, count in runs for _ in range(count)]
