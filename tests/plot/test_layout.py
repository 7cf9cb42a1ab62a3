"""Layouts of graphs: nothing overlaps, lines lead downwards, every edge can be followed."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.plot.layout import Edge, Layout, lay_out

Size = tuple[float, float]


def random_graph(nodes: int, seed: int) -> tuple[list[Size], list[Edge]]:
    draw = random.Random(seed)
    sizes = [(draw.uniform(10, 200), draw.uniform(10, 60)) for _ in range(nodes)]
    edges = [pair for pair in combinations(range(nodes), 2) if draw.random() < 0.25]
    return sizes, edges


def reached(layout: Layout, start: tuple[float, float]) -> set[tuple[float, float]]:
    """The points that lines lead to from a point."""
    ends = defaultdict(list)
    for line in layout.lines:
        for point, following in pairwise(line):
            ends[point].append(following)
    found, waiting = set(), [start]
    while waiting:
        for point in ends[waiting.pop()]:
            if point not in found:
                found.add(point)
                waiting.append(point)
    return found


@properties(60)
@given(st.integers(1, 25), st.integers(0, 1000))
def test_random_graphs(nodes: int, seed: int) -> None:
    sizes, edges = random_graph(nodes, seed)
    layout = lay_out(sizes, edges)
    boxes = [(*corner, *size) for corner, size in zip(layout.corners, sizes, strict=True)]
    assert all(x >= -1e-6 and x + width <= layout.width + 1e-6 for x, _, width, _ in boxes)
    assert all(y >= -1e-6 and y + height <= layout.height + 1e-6 for _, y, _, height in boxes)
    for one, other in combinations(boxes, 2):
        beside = one[0] + one[2] <= other[0] + 1e-6 or other[0] + other[2] <= one[0] + 1e-6
        assert beside or one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]
    for line in layout.lines:
        assert all(start[1] <= end[1] for start, end in pairwise(line))
    for source, target in edges:
        x, y, width, height = boxes[source]
        onto, top = boxes[target][0] + boxes[target][2] / 2, boxes[target][1]
        points = reached(layout, min(starts(layout), key=lambda p: distance(p, (x + width / 2, y + height))))
        assert min(distance(point, (onto, top)) for point in points) < 1e-6


def starts(layout: Layout) -> list[tuple[float, float]]:
    return [point for line in layout.lines for point in line[:-1]]


def distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def test_a_chain_is_a_straight_column() -> None:
    layout = lay_out([(40, 20), (100, 30), (60, 10)], [(0, 1), (1, 2)])
    assert layout.corners == [(30, 0), (0, 42), (20, 94)]
    assert layout.lines == [[(50, 20), (50, 42)], [(50, 72), (50, 94)]]
    assert (layout.width, layout.height) == (100, 104)


def test_a_skip_connection_runs_beside_what_it_skips() -> None:
    layout = lay_out([(40, 20)] * 3, [(0, 1), (1, 2), (0, 2)])
    (x, y), width = layout.corners[1], 40
    (lane,) = [line for line in layout.lines if len(line) == 3]
    assert lane[0][0] == lane[1][0]
    assert not x <= lane[0][0] <= x + width
    assert (lane[0][1], lane[1][1]) == (y, y + 20)


def test_nothing_to_draw() -> None:
    assert lay_out([], []) == Layout([], [], 0, 0)
