"""Export on random graphs: whatever the network, the same function and never more parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from random_steps import MAP_STEPS, TOKEN_STEPS, Maker, Step
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.errors import ArgumentError

Plan = list[tuple[str, int, int]]
"""Steps by name, width and variant."""

PATTERNS = ("rows", "columns", "both", "random", "everything")
LARGEST = 24  # channels


class RandomNetwork(nn.Module):
    """Values handed through random steps, some of which also read an earlier value.

    A step that does not fit the value that it is given is left out.
    """

    def __init__(self, plan: Plan, x: Tensor, first: nn.Module | None = None) -> None:
        super().__init__()
        steps = MAP_STEPS if x.dim() == 4 else TOKEN_STEPS
        self.first, self.steps = first, nn.ModuleList()
        values = [x if first is None else first(x)]
        for kind, width, pick in plan:
            step = fitting(steps[kind], values, width, pick)
            if step is not None:
                self.steps.append(step)
                values.append(step(values))
        self.shape = values[-1].shape

    def forward(self, x: Tensor) -> Tensor:
        values = [x if self.first is None else self.first(x)]
        for step in self.steps:
            values.append(step(values))
        return values[-1]


def fitting(maker: Maker, values: list[Tensor], width: int, pick: int) -> Step | None:
    """A step that runs on the values; None where this one does not."""
    try:
        step = maker([value.shape for value in values], width, pick).eval()
        result = step([value.clone() for value in values])
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError, AssertionError):
        return None
    inside = result.dim() == values[-1].dim() and result.numel() and result.shape[1] <= LARGEST
    return step if inside and max(result.shape) <= LARGEST else None


class Headed(nn.Module):
    """A network with one of several ways to end."""

    def __init__(self, body: RandomNetwork, end: int) -> None:
        super().__init__()
        ends = MAP_ENDS if len(body.shape) == 4 else TOKEN_ENDS
        self.body, self.end, count = body, *ends[end % len(ends)]
        self.head = nn.Linear(count(body.shape), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x), self.head)


_End = tuple[Callable[[Tensor, nn.Module], Tensor], Callable[[torch.Size], int]]

MAP_ENDS: list[_End] = [
    (lambda x, head: head(x.flatten(1)), lambda shape: shape[1:].numel()),
    (lambda x, head: head(x.mean((2, 3))), lambda shape: shape[1]),
    (lambda x, head: head(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)), lambda shape: shape[1]),
    (lambda x, head: head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), lambda shape: shape[1]),
    (lambda x, head: head(F.adaptive_max_pool2d(x, 2).flatten(1)), lambda shape: 4 * shape[1]),
    (lambda x, head: head(x.amax((-2, -1))), lambda shape: shape[1]),
    (lambda x, head: x, lambda shape: 1),
]
TOKEN_ENDS: list[_End] = [
    (lambda x, head: head(x), lambda shape: shape[2]),
    (lambda x, head: head(x[:, 0]), lambda shape: shape[2]),
    (lambda x, head: head(x.mean(1)), lambda shape: shape[2]),
    (lambda x, head: head(x[:, -1, :]).log_softmax(-1), lambda shape: shape[2]),
    (lambda x, head: head(x.flatten(1)), lambda shape: shape[1:].numel()),
    (lambda x, head: head(x.max(dim=1).values), lambda shape: shape[2]),
    (lambda x, head: x, lambda shape: 1),
]


@torch.no_grad()
def empty(model: nn.Module, pattern: str) -> None:
    """Random statistics and scales; rows and columns of every weight emptied, and biases of empty rows."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name.startswith("running"):
                buffer.uniform_(0.5, 2)
        for vector in module._parameters.values():
            if vector is not None and vector.dim() == 1:
                vector.normal_()
                vector[torch.rand(vector.shape) < 0.2] = 0
        for name, weight in module._parameters.items():
            if weight is None or weight.dim() < 2:
                continue
            if pattern in ("rows", "both", "random"):
                weight[torch.rand(weight.shape[0]) < 0.4] = 0
            if pattern in ("columns", "both"):
                weight[:, torch.rand(weight.shape[1]) < 0.4] = 0
            if pattern == "random":
                weight[torch.rand(weight.shape) > 0.1] = 0
            if pattern == "everything":
                weight.zero_()
            bias = module._parameters.get(name.replace("weight", "bias"))
            if bias is not None and bias.shape[:1] == weight.shape[:1] and torch.rand(()) < 0.5:
                bias[~weight.flatten(1).any(1)] = 0


@torch.no_grad()
def check_export(model: nn.Module, inputs: Callable[[int, int], Tensor], batch: int, size: int) -> None:
    """The same function at the example's size and at others, a valid graph, and no more weights."""
    model = model.double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these models has to stay Python
        compact = sparsefx.export(model, (inputs(batch, size),))
    if isinstance(compact, torch.fx.GraphModule):
        compact.graph.lint()
    for other_batch, other_size in [(batch, size), (batch + 2, size), (3, size + 2)]:
        x = inputs(other_batch, other_size)
        try:
            expected = model(x.clone())
        except (RuntimeError, ValueError, IndexError):  # the network is for maps of one size
            assert (other_batch, other_size) != (batch, size)
            continue
        actual = compact(x.clone())
        assert actual.shape == expected.shape
        if not bool(expected.isfinite().all()):
            continue  # it overflows by itself, here
        scale = max(float(expected.abs().max()), 1e-3)
        assert float((actual - expected).abs().max()) <= 1e-10 * scale
    assert weights(compact) <= weights(model)


@torch.no_grad()
def check_sparse_kernels(
    model: nn.Module, inputs: Callable[[int, int], Tensor], batch: int, size: int
) -> None:
    """About as exact as the network itself in float32; sizes other than the example's may be refused."""
    exact = model.double().eval()
    model, narrow = copy.deepcopy(exact).float(), _narrow(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact = sparsefx.export(model, (narrow(batch, size),), kernels="sparse")
    for other_batch, other_size in [(batch, size), (batch + 2, size), (3, size + 2), (19, size)]:
        x = narrow(other_batch, other_size)
        try:
            expected = exact(x.double() if x.is_floating_point() else x)
            dense = model(x.clone())
        except (RuntimeError, ValueError, IndexError):
            continue
        try:
            actual = compact(x.clone())
        except ArgumentError:
            assert (other_batch, other_size) != (batch, size)
            continue
        assert actual.shape == expected.shape
        if not bool(expected.float().isfinite().all()) or not bool(dense.isfinite().all()):
            continue
        error, own = (float((one.double() - expected).abs().max()) for one in (actual, dense))
        assert error <= 30 * own + 1e-5 * max(float(expected.abs().max()), 1e-3)


def _narrow(inputs: Callable[[int, int], Tensor]) -> Callable[[int, int], Tensor]:
    def make(batch: int, size: int) -> Tensor:
        x = inputs(batch, size)
        return x.float() if x.is_floating_point() else x

    return make


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


def images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, 4, dtype=torch.float64)


def words(batch: int, length: int) -> Tensor:
    return torch.randint(0, 7, (batch, length))


def plans(names: list[str]) -> st.SearchStrategy[Plan]:
    step = st.tuples(st.sampled_from(names), st.sampled_from([2, 3, 4, 6, 8]), st.integers(0, 999))
    return st.lists(step, min_size=1, max_size=7)


def built(plan: Plan, x: Tensor, first: nn.Module | None, end: int, pattern: str) -> nn.Module:
    """The network of a plan, with empty rows and columns."""
    with torch.no_grad():
        model = Headed(RandomNetwork(plan, x.float() if x.is_floating_point() else x, first), end)
    empty(model, pattern)
    return model


INPUTS: dict[str, tuple[Callable[[int, int], Tensor], list[int]]] = {
    "images": (images, [4, 2]),
    "tokens": (tokens, [5, 4, 1]),
    "words": (words, [5, 4, 1]),
}
"""What a network reads, and the sizes of the examples."""


Check = Callable[[nn.Module, Callable[[int, int], Tensor], int, int], None]


def check_random_network(data: st.DataObject, check: Check) -> None:
    torch.manual_seed(data.draw(st.integers(0, 999), "seed"))
    inputs, sizes = INPUTS[data.draw(st.sampled_from(sorted(INPUTS)), "inputs")]
    batch, size = data.draw(st.sampled_from([2, 1, 3]), "batch"), data.draw(st.sampled_from(sizes), "size")
    plan = data.draw(plans(sorted(MAP_STEPS if inputs is images else TOKEN_STEPS)), "plan")
    first = nn.Embedding(7, data.draw(st.sampled_from([4, 6]), "width")) if inputs is words else None
    end, pattern = data.draw(st.integers(0, 6), "end"), data.draw(st.sampled_from(PATTERNS), "pattern")
    check(built(plan, inputs(batch, size), first, end, pattern), inputs, batch, size)


@properties(5000, quick=5)
@given(st.data())
def test_export_of_a_random_network(data: st.DataObject) -> None:
    check_random_network(data, check_export)


@properties(2000, quick=3)
@given(st.data())
def test_a_random_network_by_sparse_kernels(data: st.DataObject) -> None:
    check_random_network(data, check_sparse_kernels)


@pytest.mark.parametrize("steps", [MAP_STEPS, TOKEN_STEPS], ids=["maps", "tokens"])
def test_every_step_fits_in_most_of_its_variants(steps: dict[str, Maker]) -> None:
    """A step that never runs would be left out of every network, and nobody would know."""
    x = torch.randn(2, 4, 4, 4) if steps is MAP_STEPS else torch.randn(2, 4, 4)
    with torch.no_grad():
        fits = {name: [fitting(steps[name], [x, x], 4, pick) for pick in range(60)] for name in steps}
    assert min(sum(step is not None for step in found) for found in fits.values()) > 40
