"""Parts of graphs, against a definition by trial of all pairs; and the steps that it takes to find them."""

import graphlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import fx

from sparsefx.passes.regions.partition import partition
from sparsefx.passes.regions.stable_sort import stable_sort


@st.composite
def graphs(draw):
    """What each node of a random graph reads, in topological order, and which nodes are supported."""
    size = draw(st.integers(0, 24))
    sources = {
        node: draw(st.lists(st.integers(0, node - 1), max_size=3, unique=True)) if node else []
        for node in range(size)
    }
    return sources, draw(st.sets(st.integers(0, size - 1))) if size else set()


def acyclic(sources, parts):
    """Whether the graph has no cycle with each part as one node."""
    name = {node: part[0] for part in parts for node in part}
    contracted = {name.get(node, node): set() for node in sources}
    for node, read in sources.items():
        contracted[name.get(node, node)] |= {name.get(source, source) for source in read}
    for node, read in contracted.items():
        read.discard(node)
    try:
        graphlib.TopologicalSorter(contracted).prepare()
    except graphlib.CycleError:
        return False
    return True


def neighbours(sources, first, second):
    """Whether one reads the other, or both read the same."""
    near = [{*part}.union(*(sources[node] for node in part)) for part in (first, second)]
    return bool(near[0] & near[1])


def connected(sources, part):
    reached, rest = {part[0]}, {*part[1:]}
    while new := {node for node in rest if neighbours(sources, reached, [node])}:
        reached |= new
        rest -= new
    return not rest


def check_parts(sources, supported):
    parts = partition(sources, supported)
    assert sorted(itertools.chain(*parts)) == sorted(supported)
    assert parts == sorted(tuple(sorted(part)) for part in parts)
    assert acyclic(sources, parts)
    assert all(connected(sources, part) for part in parts)
    for first, second in itertools.combinations(parts, 2):
        if neighbours(sources, first, second):
            rest = [part for part in parts if part not in (first, second)]
            assert not acyclic(sources, [first + second, *rest]), f"{first} and {second} could be one"


@properties(5000, quick=50)
@given(graphs())
def test_parts_are_valid_and_as_large_as_they_can_be(graph):
    check_parts(*graph)


@pytest.mark.parametrize(
    ("sources", "supported", "parts"),
    [
        ({}, set(), []),
        ({0: [], 1: [0]}, {1}, [(1,)]),
        # what is not supported lies between: a, its reader c, then b, which reads both c and u
        ({"a": [], "u": ["a"], "c": ["a"], "b": ["u", "c"]}, {"a", "b", "c"}, [("a", "c"), ("b",)]),
        # two that read the same
        ({"x": [], "a": ["x"], "b": ["x"]}, {"a", "b"}, [("a", "b")]),
        # two that share nothing
        ({"x": [], "y": [], "a": ["x"], "b": ["y"]}, {"a", "b"}, [("a",), ("b",)]),
        # ... and what reads both
        ({"x": [], "y": [], "a": ["x"], "b": ["y"], "c": ["a", "b"]}, {"a", "b", "c"}, [("a", "b", "c")]),
        # crossed through what is not supported: each pair alone could be one part, both could not
        (
            {"a": [], "b": [], "u": ["a"], "v": ["b"], "c": ["v", "a"], "d": ["u", "b"]},
            {"a", "b", "c", "d"},
            [("a", "c"), ("b",), ("d",)],
        ),
    ],
)
def test_parts_by_hand(sources, supported, parts):
    assert partition(sources, supported) == parts


class Counted:
    """A node that counts how often it is looked up."""

    steps = 0

    def __hash__(self):
        Counted.steps += 1
        return id(self)


def chain(length):
    return {node: [node - 1] if node else [] for node in range(length)}, {*range(length)}


def residual(length):
    """Blocks of a supported node, one that is not, and a sum with what came in."""
    sources = {0: []}
    for node in range(1, length):
        sources[node] = [node - 1, node - 3] if node % 3 == 0 else [node - 1]
    return sources, {node for node in sources if node % 3 != 2}


def shared(length):
    """Supported nodes and others by turns, all of which read the first, such as a mask."""
    sources = {node: [*{0, node - 1}] if node else [] for node in range(length)}
    return sources, {node for node in sources if node % 2}


def indexed(length):
    """Each node reads one value and the one before: a container and an index."""
    sources = {node: [*{0, node - 1, node // 2}] if node else [] for node in range(length)}
    return sources, {*range(length)}


def steps(graph):
    sources, supported = graph
    nodes = {node: Counted() for node in sources}
    counted = {nodes[node]: [nodes[source] for source in read] for node, read in sources.items()}
    chosen = {nodes[node] for node in supported}
    Counted.steps = 0
    partition(counted, chosen)
    return Counted.steps


@pytest.mark.parametrize("graph", [chain, indexed])
def test_steps_grow_as_the_graph(graph):
    assert steps(graph(1600)) < 2.5 * steps(graph(800))


@pytest.mark.parametrize("graph", [residual, shared])
def test_steps_are_bounded_where_parts_stay_apart(graph):
    size = 600
    assert steps(graph(size)) < 8 * size * size


def test_stable_sort_moves_only_what_stands_too_early():
    graph = fx.Graph()
    x = graph.placeholder("x")
    first, second, unread, third = (graph.call_function(torch.relu, (x,)) for _ in range(4))
    result = graph.output((first, third))
    first.args = (second,)
    stable_sort(graph)
    assert [*graph.nodes] == [x, second, first, unread, third, result]
    graph.lint()
