"""Tracing along example calls: what becomes a number, what stays a node, and what is refused, and where."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import relative_difference
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.capture.capture import capture
from sparsefx.passes.running.examples import bind


class Traced(nn.Module):
    """A forward given as a function of the module and its input."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.fc = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


SIZES = [(2, 6, 4), (3, 12, 4)]


def trace(function: Callable[..., Any]) -> fx.Graph | str:
    """The graph along two calls, or the reason why there is none."""
    model = Traced(function).eval()
    captured = capture(model, [bind(model, (torch.ones(size),), {}) for size in SIZES])
    return captured.opaque[""] if captured.graph is None else captured.graph


def runs(function: Callable[..., Any]) -> fx.GraphModule:
    """The graph, which computes the same at sizes of its own."""
    model = Traced(function).eval()
    graph = capture(model, [bind(model, (torch.ones(size),), {}) for size in SIZES]).graph
    assert graph is not None
    module = fx.GraphModule(model, graph)
    for size in [*SIZES, (5, 18, 4)]:
        x = torch.randn(size)
        assert torch.equal(module(x), model(x))
    return module


def walk_over_chunks(m: Traced, x: Tensor) -> Tensor:
    return sum(part * number for number, part in enumerate(x.chunk(2, -1)))


def unpack_sizes(m: Traced, x: Tensor) -> Tensor:
    b, n, c = x.shape
    return x.reshape(b * n, c).view(b, n, c // 2, 2).flatten(2)


def count(m: Traced, x: Tensor) -> Tensor:
    for _ in range(x.size(-1)):
        x = m.fc(x)
    return x


def length(m: Traced, x: Tensor) -> Tensor:
    return torch.cat([x] * len(x.split(1, 2)), 2)


def branch_on_a_fixed_size(m: Traced, x: Tensor) -> Tensor:
    return m.fc(x) if x.shape[-1] == 4 and x.dim() == 3 and x.ndim > 2 else x


def branch_on_the_type(m: Traced, x: Tensor) -> Tensor:
    if x.dtype == torch.float16 or not x.is_floating_point() or torch.is_complex(x):
        return x
    return m.fc(x.to(x.dtype))


def guard_by_assert(m: Traced, x: Tensor) -> Tensor:
    assert x.shape[1] % 6 == 0, "windows of 6"
    return m.fc(x)


def guard_by_raise(m: Traced, x: Tensor) -> Tensor:
    if x.shape[1] < 2:
        raise ValueError("too short")
    return m.fc(x)


def isinstance_of_tensor(m: Traced, x: Tensor) -> Tensor:
    return m.fc(x) if isinstance(x, Tensor) and isinstance(x.shape[1], int) else x


def new_tensors(m: Traced, x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[1])[:, None] + torch.zeros(x.shape[0], 1, 1) + torch.ones(4)


def number_of_elements(m: Traced, x: Tensor) -> Tensor:
    return x / x[0, 0].numel() + x.view(x.shape[:1].numel(), -1).sum(1)[:, None, None]


def lengths(m: Traced, x: Tensor) -> Tensor:
    return x / len(x) + torch.arange(len(x.transpose(0, 1)))[:, None] + len(x[0, 0])


def shapes_that_differ_in_a_fixed_size(m: Traced, x: Tensor) -> Tensor:
    halves = x[..., :2]
    unlike = x.shape != halves.shape and x.shape != (len(x), 5, 5)
    if unlike and x.shape[2:] == halves.repeat(1, 1, 2).shape[2:]:
        return m.fc(x)
    return x


def guard_of_shapes(m: Traced, x: Tensor) -> Tensor:
    assert m.fc(x).shape == x.shape
    if m.fc(x).shape != x.shape:
        raise ValueError("shapes differ")
    return m.fc(x)


def rounded_sizes(m: Traced, x: Tensor, up: Any = math.ceil, down: Any = math.floor) -> Tensor:
    x = F.pad(x, (0, 0, 0, up(x.shape[1] / 4) * 4 - x.shape[1]))  # functions that fx does not find to wrap
    return x[:, : down(x.shape[1] / 3)] + round(x.shape[1] / 4)


TRACED = [
    lengths, shapes_that_differ_in_a_fixed_size, guard_of_shapes, rounded_sizes,
    walk_over_chunks, unpack_sizes, count, length, branch_on_a_fixed_size, branch_on_the_type,
    guard_by_assert, guard_by_raise, isinstance_of_tensor, new_tensors, number_of_elements,
]  # fmt: skip


@pytest.mark.parametrize("function", TRACED, ids=lambda function: function.__name__)
def test_what_the_examples_agree_on_is_specialised(function: Callable[..., Any]) -> None:
    runs(function)


def test_fixed_sizes_are_numbers_and_others_are_nodes() -> None:
    module = runs(unpack_sizes)
    (view,) = [node for node in module.graph.nodes if node.target == "view"]
    assert [type(size).__name__ for size in view.args[1:]] == ["Node", "Node", "int", "int"]
    assert sum(node.target == "fc" for node in runs(count).graph.nodes) == 4


def test_a_constructor_of_literal_sizes_is_no_node() -> None:
    graph = runs(new_tensors).graph
    assert [node.target.__name__ for node in graph.nodes if node.target in (torch.arange, torch.zeros)] == [
        "arange",
        "zeros",
    ]


def branch_on_a_size(m: Traced, x: Tensor) -> Tensor:
    if x.shape[1] > 8:
        return m.fc(x)
    return x


def branch_on_a_size_all_agree_on(m: Traced, x: Tensor) -> Tensor:
    if x.shape[1] > 1:
        return m.fc(x)
    return x


def branch_on_data(m: Traced, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return m.fc(x)
    return x


def assert_on_data_with_another_branch(m: Traced, x: Tensor) -> Tensor:
    if x.min() < 0:
        x = x.abs()
    else:
        raise ValueError("positive")
    return x


def count_over_a_size(m: Traced, x: Tensor) -> Tensor:
    for _ in x.split(2, 1):
        x = m.fc(x)
    return x


def size_as_a_number(m: Traced, x: Tensor) -> Tensor:
    return x * int(x.shape[1])


def size_in_a_range(m: Traced, x: Tensor) -> Tensor:
    return sum(x[:, i] for i in range(x.shape[1]))


def data_as_a_number(m: Traced, x: Tensor) -> Tensor:
    return x * float(x.sum())


def padded_to_a_multiple(m: Traced, x: Tensor) -> Tensor:
    x = F.pad(x, (0, 0, 0, -x.shape[1] % 12))
    return torch.stack([x[:, i] for i in range(x.shape[1])])


def equal_shapes(m: Traced, x: Tensor) -> Tensor:
    return m.fc(x) if x[:, :15].shape == x.shape else x


def length_in_a_range(m: Traced, x: Tensor) -> Tensor:
    return sum(x[i] for i in range(len(x)))


REFUSED = {
    equal_shapes: (1, "it branches on a size of its input"),
    length_in_a_range: (1, "it needs a size of its input as a number"),
    branch_on_a_size: (1, "it branches on a size of its input"),
    branch_on_a_size_all_agree_on: (1, "it branches on a size of its input"),
    branch_on_data: (1, "it branches on data"),
    assert_on_data_with_another_branch: (1, "it branches on data"),
    count_over_a_size: (1, "it takes a dimension apart that follows the input"),
    size_as_a_number: (1, "it needs a size of its input as a number"),
    size_in_a_range: (1, "it needs a size of its input as a number"),
    data_as_a_number: (1, "it needs a size of its input, or data, as a number"),
    padded_to_a_multiple: (2, "it needs a size of its input as a number"),
}


def compare_lengths_of_one_origin(m: Traced, x: Tensor) -> Tensor:
    y = m.fc(x)
    if y.shape[1] > x.shape[1] or y.shape[1] - x.shape[1] + 0 != 0:
        return y[:, : x.shape[1]]
    return x + y


def smallest_number_of_a_type(m: Traced, x: Tensor) -> Tensor:
    return m.fc(x).masked_fill(x > 0, torch.finfo(x.dtype).min)


@pytest.mark.parametrize("function", [compare_lengths_of_one_origin, smallest_number_of_a_type])
def test_what_holds_at_every_size_or_type_traces(function: Callable[..., Any]) -> None:
    module = runs(function)
    assert module.double()(torch.ones(2, 3, 4, dtype=torch.float64)).dtype is torch.float64
    assert module(torch.ones(1, 1, 4, dtype=torch.float64)).shape == (1, 1, 4)


def largest_and_least_of_sizes(m: Traced, x: Tensor) -> Tensor:
    first, length = x.shape[:2]
    y = m.fc(x)[:, : min(length, 2)] * max(first, 2.5, len(x[0]))
    return nn.functional.pad(y, (0, 0, 0, max(x.shape[:2]) - min([first, y.shape[1]]))) + max(3, y.dim())


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1), (1, 5), (4, 4), (2, 3)])
def test_largest_and_least_of_sizes(sizes: tuple[int, int]) -> None:
    module = runs(largest_and_least_of_sizes)
    x = torch.ones(*sizes, 4)
    assert torch.equal(module(x), largest_and_least_of_sizes(module, x))  # type: ignore[arg-type]


def halve_and_double(m: Traced, x: Tensor) -> Tensor:
    """Lengths are alike for even ones only."""
    y = m.fc(x[:, ::2]).repeat_interleave(2, 1)
    if y.shape[1] != x.shape[1]:
        y = y[:, : x.shape[1]]
    return x + y


def test_lengths_that_are_alike_only_where_they_are_even() -> None:
    assert "it branches on a size of its input" in str(trace(halve_and_double))


def test_lengths_of_two_inputs_that_happen_to_be_alike() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y if x.shape[1] == y.shape[1] else x

    model = Both()
    calls = [bind(model, (torch.ones(2, n), torch.ones(2, n)), {}) for n in (6, 12)]
    assert "it branches on a size of its input" in capture(model, calls).opaque[""]


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_what_the_examples_cannot_decide_is_refused_with_its_line(function: Callable[..., Any]) -> None:
    line, reason = REFUSED[function]
    line += inspect.getsourcelines(function)[1]
    assert trace(function) == f"{reason}, at test_example_tracer.py:{line}"


def test_a_dimension_padded_to_a_multiple_is_not_fixed_though_all_agree() -> None:
    """6 and 12 positions both become 12 here, and 13 would become 24."""

    def loose(m: Traced, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, -x.shape[1] % 12))
        return x.view(x.shape[0], x.shape[1] // 2, 2, 4).sum(2)

    module = runs(loose)
    x = torch.randn(2, 13, 4)
    assert module(x).shape == (2, 12, 4)


def test_arguments_without_tensors_are_specialised_and_then_held_to() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float, mode: str = "up", *, flags: tuple[bool, ...] = ()) -> Any:
            return x * scale if mode == "up" else x

    model = Scaled()
    graph = capture(model, [bind(model, (torch.ones(size), 2.0), {}) for size in SIZES]).graph
    assert graph is not None
    module = fx.GraphModule(model, graph)
    assert torch.equal(module(torch.ones(2), 2.0), torch.full((2,), 2.0))
    with pytest.raises(TypeError, match=r"argument 'scale' was traced as 2\.0 and cannot change"):
        module(torch.ones(2), 3.0)


def test_an_argument_that_is_no_literal_is_named() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor, thing: object) -> Tensor:
            return x

    model = Opaque()
    captured = capture(model, [bind(model, (torch.ones(2), object()), {})])
    assert captured.opaque == {"": "its argument 'thing' is a object"}


def pad(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, -x.shape[1] % 12))


CHANCE: dict[str, Callable[[Traced, Tensor], Any]] = {
    "behind an activation": lambda m, x: x.new_ones(()) / F.relu(pad(x)).shape[1],
    "behind a permutation": lambda m, x: x.new_ones(()) / m.fc(pad(x)).transpose(0, 1).shape[0],
    "in windows": lambda m, x: x.new_ones(()) / pad(x).view(-1, pad(x).shape[1] // 3, 3, 4).shape[1],
    "flattened": lambda m, x: x.new_ones(()) / pad(x).flatten(1).shape[1],
    "as an attribute": lambda m, x: x.new_ones(()) / pad(x).mT.shape[2],
    "by its length": lambda m, x: x.new_ones(()) / len(pad(x).transpose(0, 1)),
    "as a field": lambda m, x: x.new_ones(()) / pad(x).max(2).values.shape[1],
    "in pieces": lambda m, x: x.new_ones(()) / pad(x).chunk(2, -1)[1].shape[1],
    "number of elements": lambda m, x: x.new_ones(()) / pad(x)[0].numel(),
    "mask": lambda m, x: x.new_ones(()) / m.fc(x)[x > 5].shape[0],
    "mask of positions": lambda m, x: x.new_ones(()) / F.relu(x[:, 0][x[:, 0, 0] > 5]).shape[0],
    "nonzero": lambda m, x: x.new_ones(()) / (x > 5).nonzero().shape[0],
    "where": lambda m, x: x.new_ones(()) / torch.where(x > 5)[1].shape[0],
    "selected": lambda m, x: x.new_ones(()) / torch.masked_select(x, x > 5).numel(),
    "unique": lambda m, x: x.new_ones(()) / torch.unique(x).shape[0],
    "repeated": lambda m, x: x.new_ones(()) / torch.repeat_interleave(x, (x[:, 0, 0] > 5).long(), 0).shape[0],
}


@pytest.mark.parametrize("name", CHANCE)
def test_sizes_that_are_alike_by_chance_are_not_fixed(name: str) -> None:
    """6 and 12 positions are padded to 12 both, and no element of either example is above 5."""
    model = Traced(CHANCE[name]).eval()
    graph = capture(model, [bind(model, (torch.ones(size),), {}) for size in SIZES]).graph
    assert graph is not None
    x = torch.randn(2, 13, 4).mul(8).round()
    assert torch.equal(fx.GraphModule(model, graph)(x), model(x))


def test_what_depends_on_data_leaves_other_dimensions_fixed() -> None:
    graph = trace(lambda m, x: m.fc(x)[x[..., 0] > 5].view(-1, 2, m.fc(x)[x[..., 0] > 5].shape[-1] // 2))
    assert isinstance(graph, fx.Graph)
    (view,) = [node for node in graph.nodes if node.target == "view"]
    assert view.args[1:] == (-1, 2, 2)


def test_a_leaf_that_returns_none_beside_its_result() -> None:
    class Leaf(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return (x, None) if x.sum() < 1e9 else (-x, None)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.leaf, self.last = nn.Linear(4, 8), Leaf(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, state = self.leaf(self.first(x))
            if state is not None:
                y = y + state[0]
            return self.last(y)

    torch.manual_seed(0)
    model = Net().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert [part.name for part in compact.report.opaque] == ["leaf"]
    assert relative_difference(compact(x), model(x)) <= 1e-11
