"""Sizes other than the example's: the model's answer where they vary, an error where they are fixed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import reloaded
from networks import relative_difference
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.capture.size_guards import SizeError

Shape = tuple[int, ...]


@torch.no_grad()
def emptied(model: nn.Module) -> nn.Module:
    """In float64, every other row of each weight empty."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter[::2] = 0
    return model.double().eval()


def inputs(*shapes: Shape) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


@torch.no_grad()
def check(model: nn.Module, example: Sequence[Shape], *others: Sequence[Shape], **options: Any) -> nn.Module:
    """An export that is the model at all sizes."""
    compact = sparsefx.export(emptied(model), inputs(*example), **options)
    assert compact.report.captured == "whole"
    for shapes in (example, *others):
        x = inputs(*shapes)
        assert relative_difference(compact(*x), model(*x)) <= 1e-11
    return compact


class Pooled(nn.Module):
    """Two convolutions with poolings ``[N, 1, T, bins]``, and a linear layer for each frame."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16 * bins, 5)

    def maps(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return F.max_pool2d(F.relu(self.second(x)), 2)


class KeywordSpotter(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        y = self.maps(x.unsqueeze(1)).transpose(1, 2)
        y = self.head(y.reshape(y.shape[0], y.shape[1], y.shape[2] * y.shape[3]))
        return y.sum(1) / y.shape[1]


class Recurrent(Pooled):
    """Text lines ``[N, 1, 16, W]``, read from left to right."""

    def __init__(self) -> None:
        super().__init__(4)
        self.head = nn.Linear(6, 5)
        self.rnn = nn.LSTM(64, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = self.maps(x).shape
        columns = self.maps(x).permute(0, 3, 1, 2).reshape(n, w, c * h)
        return self.head(self.rnn(columns)[0])


def test_time_and_bins_of_a_keyword_spotter() -> None:
    sizes = [[(1, 57, 40)], [(3, 200, 43)], [(2, 31, 42)], [(2, 101, 41)]]
    compact = check(KeywordSpotter(10), [(2, 100, 40)], *sizes)
    time, bins = compact.report.sizes[1:]
    assert (time.limited, bins.limited, bins.least, bins.most) == (False, True, 40, 43)
    for refused in (39, 44, 80):
        with pytest.raises(
            SizeError, match=rf"argument 'x' has size {refused} in dimension 2; .* for 40 to 43"
        ):
            compact(*inputs((2, 100, refused)))


def test_other_widths_of_a_text_line(tmp_path: Path) -> None:
    compact = check(Recurrent(), [(2, 1, 16, 100)], [(1, 1, 16, 57)], [(3, 1, 19, 200)])
    sparsefx.save(compact, tmp_path / "net.safetensors")
    loaded = sparsefx.load(tmp_path / "net.safetensors", Recurrent())
    (x,) = inputs((1, 1, 17, 57))
    assert torch.equal(loaded(x), compact(x))
    assert loaded.report == compact.report
    with pytest.raises(SizeError, match="dimension 2"):
        loaded(*inputs((1, 1, 20, 57)))


def test_sparse_kernels_at_other_lengths() -> None:
    pytest.importorskip("llvmlite")
    model = emptied(KeywordSpotter(10))
    (x, other) = (one.float() for one in inputs((2, 100, 40), (3, 57, 43)))
    compact = sparsefx.export(model.float(), (x,), kernels="sparse")
    torch.testing.assert_close(compact(other), model(other), rtol=1e-4, atol=1e-5)
    with pytest.raises(SizeError):
        compact(torch.randn(2, 100, 44))


class Trajectories(nn.Module):
    """States, actions and returns of each step; there are as many steps as a state has numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.action, self.gain = nn.Linear(8, 6), nn.Linear(3, 6), nn.Linear(1, 6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, states: Tensor, actions: Tensor, gains: Tensor) -> Tensor:
        n, steps = states.shape[0], states.shape[1]
        tokens = torch.stack((self.gain(gains), self.state(states), self.action(actions)), 1)
        tokens = tokens.permute(0, 2, 1, 3).reshape(n, 3 * steps, 6)
        mixed = F.relu(self.mix(tokens)).reshape(n, steps, 3, 6).permute(0, 2, 1, 3)
        return self.head(mixed[:, 1])


def test_a_length_that_equals_the_number_of_features() -> None:
    shapes = lambda n, steps: [(n, steps, features) for features in (8, 3, 1)]  # noqa: E731
    check(Trajectories(), shapes(2, 8), shapes(1, 5), shapes(3, 20), shapes(3, 1))


class Idiom(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        self.positions = nn.Parameter(torch.randn(1, 6, 40))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.function(self, x) if y is None else self.function(self, x, y)


def mean_over_columns(m: Any, x: Tensor) -> Tensor:
    y = F.avg_pool2d(F.relu(m.layers[0](x)), 2)
    return m.layers[1](y.sum((2, 3)) / (y.shape[2] * y.shape[3]))


def bins_by_view(m: Any, x: Tensor) -> Tensor:
    y = F.avg_pool2d(F.relu(m.layers[0](x)), 2).permute(0, 3, 1, 2)
    return m.layers[1](y.reshape(y.shape[0], -1, y.shape[2] * y.shape[3])) / y.shape[1]


def up_and_down(m: Any, x: Tensor) -> Tensor:
    y = m.layers[1](F.relu(m.layers[0](x)))
    return y / y.shape[-1]


def adaptive(m: Any, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool1d(F.relu(m.layers[0](x)), 4)
    return m.layers[1](y.flatten(1)) * x.shape[2] / y.shape[2]


def overlapping(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.layers[0](x)).unfold(2, 4, 2).mean(-1)
    return m.layers[1](y.sum(2) / y.shape[2])


def positions(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.layers[0](x))
    y = y + m.positions[..., : y.shape[2]]
    return m.layers[1](y.sum(2) / y.shape[2])


def strides_of_three(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.layers[1](F.relu(m.layers[0](x))))
    return y.sum(2) / y.shape[2]


def two_streams(m: Any, x: Tensor, y: Tensor) -> Tensor:
    x, y = F.max_pool1d(F.relu(m.layers[0](x)), 4), F.relu(m.layers[1](y))
    return x.sum(2) / x.shape[2] + y.sum(2) / y.shape[2]


def conv(stride: int = 1, channels: int = 3) -> nn.Module:
    return nn.Conv1d(channels, 6, 3, stride)


IDIOMS: dict[str, tuple[Callable[[], nn.Module], list[Shape], list[list[Shape]]]] = {
    "mean over pooled columns": (
        lambda: Idiom(mean_over_columns, nn.Conv2d(3, 6, 3), nn.Linear(6, 5)),
        [(2, 3, 8, 8)], [[(1, 3, 64, 40)], [(3, 3, 5, 9)]],
    ),
    "bins by a view": (
        lambda: Idiom(bins_by_view, nn.Conv2d(1, 6, 3, padding=1), nn.Linear(30, 5)),
        [(2, 1, 10, 20)], [[(1, 1, 10, 33)], [(3, 1, 11, 7)]],
    ),
    "transposed convolution": (
        lambda: Idiom(up_and_down, conv(2), nn.ConvTranspose1d(6, 4, 2, 2)),
        [(2, 3, 9)], [[(1, 3, 30)], [(3, 3, 4)]],
    ),
    "adaptive pooling": (
        lambda: Idiom(adaptive, conv(), nn.Linear(24, 5)), [(2, 3, 9)], [[(1, 3, 30)], [(3, 3, 5)]]
    ),
    "windows that overlap": (
        lambda: Idiom(overlapping, conv(), nn.Linear(6, 5)), [(2, 3, 9)], [[(1, 3, 30)], [(3, 3, 7)]]
    ),
    "positions cut to the length": (
        lambda: Idiom(positions, conv(), nn.Linear(6, 5)), [(2, 3, 30)], [[(1, 3, 42)], [(3, 3, 4)]]
    ),
    "strides of three": (
        lambda: Idiom(strides_of_three, conv(3), conv(3, 6)), [(2, 3, 12)], [[(1, 3, 90)], [(3, 3, 21)]]
    ),
    "streams of one length": (
        lambda: Idiom(two_streams, conv(), conv()),
        [(2, 3, 9), (2, 3, 9)], [[(1, 3, 30), (1, 3, 8)], [(3, 3, 7), (3, 3, 40)]],
    ),
    "streams of two lengths": (
        lambda: Idiom(two_streams, conv(), conv()),
        [(2, 3, 18), (2, 3, 9)], [[(1, 3, 30), (1, 3, 30)], [(3, 3, 7), (3, 3, 40)]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IDIOMS)
def test_sizes_that_a_forward_reads(name: str) -> None:
    model, example, others = IDIOMS[name]
    check(model(), example, *others)


def test_a_map_that_grows_only_beyond_the_first_trials() -> None:
    """Five strides of 2 make 1 of all sizes up to 32."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = layer(x)
        return x.sum(2) / x.shape[2]

    layers = [nn.Conv1d(3, 3, 3, 2, 1) for _ in range(5)]
    check(Idiom(forward, *layers), [(2, 3, 8)], [(1, 3, 64)], [(1, 3, 200)])


class Named(nn.Module):
    """Tensors in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, xs: list[Tensor], more: dict[str, Tensor]) -> Tensor:
        return self.head(xs[0] + xs[1]) + more["bias"].sum() / more["bias"].shape[0]


def test_tensors_in_containers_are_named() -> None:
    model = emptied(Named())
    a, b, bias = inputs((2, 5, 4), (2, 5, 4), (3,))
    compact = sparsefx.export(model, ([a, b], {"bias": bias}))
    x, y, other = inputs((3, 7, 4), (3, 7, 4), (6,))
    torch.testing.assert_close(compact([x, y], {"bias": other}), model([x, y], {"bias": other}))
    assert [size.argument for size in compact.report.sizes] == [
        *["xs[0]"] * 3,
        *["xs[1]"] * 3,
        "more['bias']",
    ]
    with pytest.raises(SizeError, match=r"'xs\[1\]' has size 5 in dimension 2"):
        compact([x, *inputs((3, 7, 5))], {"bias": other})


class Rooted(nn.Module):
    """A forward that looks at data, around a part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = KeywordSpotter(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x if bool(x.sum() > -1e9) else -x)


@pytest.mark.filterwarnings("ignore:export")
def test_a_part_takes_all_its_sizes_and_refuses_others() -> None:
    model = emptied(Rooted())
    compact = sparsefx.export(model, inputs((2, 100, 40)))
    assert compact.report.graphs == ("part",)
    assert {size.graph for size in compact.report.sizes} == {"part"}
    for shape in [(2, 100, 40), (1, 57, 43), (3, 200, 41)]:
        (x,) = inputs(shape)
        assert relative_difference(compact(x), model(x)) <= 1e-11
    with pytest.raises(SizeError, match="dimension 2"):
        compact(*inputs((2, 100, 44)))


@pytest.fixture(scope="module")
def spotter() -> nn.Module:
    return sparsefx.export(emptied(KeywordSpotter(10)), inputs((2, 100, 40)))


def copied(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


def pickled(module: nn.Module) -> nn.Module:
    restored: nn.Module = pickle.loads(pickle.dumps(module))
    return restored


def traced(module: nn.Module) -> nn.Module:
    return torch.fx.symbolic_trace(module)


def without_dead_code(module: nn.Module) -> nn.Module:
    assert isinstance(module, torch.fx.GraphModule)
    copied = copy.deepcopy(module)
    copied.graph.eliminate_dead_code()
    copied.recompile()
    return copied


def compiled(module: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="eager", dynamic=True)  # type: ignore[return-value]


@pytest.mark.parametrize("way", [copied, pickled, reloaded, traced, without_dead_code, compiled])
def test_what_is_refused_stays_refused(way: Callable[[nn.Module], nn.Module], spotter: nn.Module) -> None:
    other = way(spotter)
    (x,) = inputs((3, 57, 42))
    torch.testing.assert_close(other(x), spotter(x))
    with pytest.raises(Exception, match="has size 44 in dimension 2"):
        other(*inputs((2, 100, 44)))


def test_torch_export_with_sizes_that_vary(spotter: nn.Module) -> None:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time", min=8)
    if torch.__version__ < "2.7":  # which wants a whole number of windows, of the plain model too
        time = 4 * torch.export.Dim("quarter", min=2, max=5_000)
    program = torch.export.export(spotter, inputs((2, 100, 40)), dynamic_shapes=({0: batch, 1: time},))
    (x,) = inputs((3, 60, 40))
    torch.testing.assert_close(program.module()(x), spotter(x))


def test_the_report_says_what_varies_and_what_was_tried(spotter: nn.Module) -> None:
    lines = str(spotter.report).splitlines()[-3:]
    assert lines == [
        "dimension 0 of x varies; tried from 1 to 4",
        "dimension 1 of x varies; tried from 4 to 200",
        "dimension 2 of x varies from 40 to 43; the model takes no others",
    ]
    assert spotter.report.as_dict()["sizes"][2]["most"] == 43
    fixed = sparsefx.export(emptied(nn.Linear(4, 3)), inputs((2, 4))).report.sizes[1]
    assert str(fixed) == "dimension 1 of input is fixed at 4"
