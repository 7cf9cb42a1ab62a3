"""Random models that read their sizes: strides, poolings, flattening, and sums divided by a size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 4


class Step(nn.Module):
    """One step on maps ``[N, WIDTH, *size]`` of one or two dimensions."""

    def __init__(self, run: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(layers)
        self.positions = nn.Parameter(torch.randn(1, WIDTH, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def convolution(dims: int, kernel: int, stride: int, padding: int) -> nn.Module:
    return (nn.Conv1d if dims == 1 else nn.Conv2d)(WIDTH, WIDTH, kernel, stride, padding)


def transposed(dims: int) -> nn.Module:
    return (nn.ConvTranspose1d if dims == 1 else nn.ConvTranspose2d)(WIDTH, WIDTH, 2, 2)


def pool(dims: int, kind: str, size: int, ceil: bool = False) -> Callable[[Step, Tensor], Tensor]:
    return lambda m, x: getattr(F, f"{kind}_pool{dims}d")(x, size, ceil_mode=ceil)


def crop(m: Step, x: Tensor) -> Tensor:
    return x[..., :9]


def every_other(m: Step, x: Tensor) -> Tensor:
    return x[..., ::2]


def add_positions(m: Step, x: Tensor) -> Tensor:
    positions = m.positions[..., : x.shape[-1]]
    return x + (positions if x.dim() == 3 else positions[:, :, None])


def scale(m: Step, x: Tensor) -> Tensor:
    return x / x.shape[-1] * x.shape[2]


def must_be_even(m: Step, x: Tensor) -> Tensor:
    assert x.shape[-1] % 2 == 0
    return x


def to_a_multiple(m: Step, x: Tensor) -> Tensor:
    x = F.pad(x, (0, -x.shape[-1] % 4))
    return x.view(*x.shape[:-1], x.shape[-1] // 4, 4).sum(-1)


def there_and_back(m: Step, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    y = m.layers[0](x.reshape(n, c, -1).transpose(1, 2))
    return y.transpose(1, 2).reshape(n, c, *x.shape[2:])


def beside_itself(m: Step, x: Tensor) -> Tensor:
    return torch.cat([x, m.layers[0](x)], -1)


def windows(m: Step, x: Tensor) -> Tensor:
    return x.unfold(-1, 3, 2).mean(-1)


STEPS: dict[str, Callable[[int], Step]] = {
    "conv": lambda dims: Step(lambda m, x: F.relu(m.layers[0](x)), convolution(dims, 3, 1, 1)),
    "valid conv": lambda dims: Step(lambda m, x: F.relu(m.layers[0](x)), convolution(dims, 3, 1, 0)),
    "stride 2": lambda dims: Step(lambda m, x: F.relu(m.layers[0](x)), convolution(dims, 3, 2, 1)),
    "stride 3": lambda dims: Step(lambda m, x: F.relu(m.layers[0](x)), convolution(dims, 3, 3, 0)),
    "transposed": lambda dims: Step(lambda m, x: F.relu(m.layers[0](x)), transposed(dims)),
    "max pool": lambda dims: Step(pool(dims, "max", 2)),
    "ceil pool": lambda dims: Step(pool(dims, "max", 3, True)),
    "avg pool": lambda dims: Step(pool(dims, "avg", 2)),
    "adaptive": lambda dims: Step(
        lambda m, x: F.adaptive_avg_pool1d(x, 5) if dims == 1 else F.adaptive_avg_pool2d(x, (None, 3))
    ),
    "double": lambda dims: Step(lambda m, x: F.interpolate(x, scale_factor=2)),
    "crop": lambda dims: Step(crop),
    "every other": lambda dims: Step(every_other),
    "positions": lambda dims: Step(add_positions),
    "scale": lambda dims: Step(scale),
    "even": lambda dims: Step(must_be_even),
    "multiple": lambda dims: Step(to_a_multiple),
    "tokens": lambda dims: Step(there_and_back, nn.Linear(WIDTH, WIDTH)),
    "beside": lambda dims: Step(beside_itself, convolution(dims, 1, 1, 0)),
    "unfold": lambda dims: Step(windows),
}


def per_frame(head: nn.Module, x: Tensor) -> Tensor:
    n, c, t = x.shape[:3]
    y = head(x.movedim(1, -1).reshape(n, t, c * x[0, 0, 0].numel()))
    return y.sum(1) / y.shape[1]


def of_all(head: nn.Module, x: Tensor) -> Tensor:
    return head(x.flatten(1))


def mean_by_hand(head: nn.Module, x: Tensor) -> Tensor:
    return head(x.flatten(2).sum(2) / x.flatten(2).shape[2])


def view_per_frame(head: nn.Module, x: Tensor) -> Tensor:
    y = x.movedim(-1, 1)
    return head(y.reshape(y.shape[0], -1, y.shape[2:].numel())).mean(1)


def map_of_all(head: nn.Module, x: Tensor) -> Tensor:
    return head(x.movedim(1, -1)) / x.shape[-1]


ENDS: list[tuple[Callable[[nn.Module, Tensor], Tensor], Callable[[torch.Size], int]]] = [
    (per_frame, lambda shape: shape[1] * shape[3:].numel()),
    (of_all, lambda shape: shape[1:].numel()),
    (mean_by_hand, lambda shape: shape[1]),
    (view_per_frame, lambda shape: shape[1:-1].numel()),
    (map_of_all, lambda shape: shape[1]),
]


def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def join(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], -1)


def attend(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.flatten(2), y.flatten(2)
    return y @ (y.transpose(1, 2) @ x) / (x.shape[2] + y.shape[2])


def summary(x: Tensor, y: Tensor) -> Tensor:
    return x + (y.flatten(2).sum(2) / y.shape[-1]).view(*y.shape[:2], *[1] * (x.dim() - 2))


def by_two(x: Tensor, y: Tensor) -> Tensor:
    return x[..., ::2] + y


MERGES = [add, join, summary, by_two, lambda x, y: attend(y, x)]


class SizedModel(nn.Module):
    """One or two streams of steps, merged, and an end; steps that do not fit the example are left out."""

    def __init__(self, plans: list[list[str]], merge: int, end: int, *inputs: Tensor) -> None:
        super().__init__()
        self.merge = MERGES[merge]
        self.streams = nn.ModuleList()
        for plan, x in zip(plans, inputs, strict=True):
            self.streams.append(nn.Sequential(*_fitting(plan, x)))
        merged = self.merged(*inputs)
        self.end, features = ENDS[end]
        self.head = nn.Linear(features(merged.shape), 3)

    def merged(self, *inputs: Tensor) -> Tensor:
        values = [stream(x) for stream, x in zip(self.streams, inputs, strict=True)]
        return self.merge(*values) if len(values) > 1 else values[0]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.end(self.head, self.merged(*inputs))


class OneInput(SizedModel):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class TwoInputs(SizedModel):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y)


def _fitting(plan: list[str], x: Tensor) -> list[Step]:
    steps: list[Step] = []
    for name in plan:
        step = STEPS[name](x.dim() - 2)
        try:
            result = step(x)
        except (RuntimeError, AssertionError):
            continue
        if result.numel() and result.numel() < 4000:
            steps.append(step)
            x = result
    return steps


@st.composite
def sized_models(draw: st.DrawFn) -> tuple[nn.Module, list[tuple[int, ...]]]:
    """A model with empty rows, and the shapes of its example inputs."""
    torch.manual_seed(draw(st.integers(0, 999)))
    count, batch = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length = st.integers(4, 20)
    first = (batch, WIDTH, *draw(st.lists(length, min_size=1, max_size=2)))
    shapes = [first]
    if count == 2:
        merge = draw(st.integers(0, len(MERGES) - 1))
        sizes = [draw(st.sampled_from([size, size, size // 2 + 1, draw(length)])) for size in first[2:]]
        shapes.append((batch, WIDTH, *sizes))
    else:
        merge = 0
    plans = [draw(st.lists(st.sampled_from(sorted(STEPS)), max_size=4)) for _ in shapes]
    inputs = [torch.randn(shape) for shape in shapes]
    try:
        with torch.no_grad():
            model = (OneInput, TwoInputs)[count - 1](
                plans, merge, draw(st.integers(0, len(ENDS) - 1)), *inputs
            )
            model(*inputs)
    except (RuntimeError, IndexError):  # the streams do not fit together
        from hypothesis import reject

        reject()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[torch.rand(len(parameter)) < 0.4] = 0
    return model.double().eval(), shapes
