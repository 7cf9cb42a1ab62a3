"""Networks with residual sums, pools and norms, drawn at random, and how they are compared with float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import sparsefx
from sparsefx.accelerate import accelerate
from sparsefx.kernels.training.region import TrainingRegion
from sparsefx.masking.masks import masked_weights

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LARGEST: tuple[Any, ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEANS: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


EXACT_ACTIVATIONS: tuple[Any, ...] = (nn.ReLU, nn.ReLU, nn.ReLU6, lambda: nn.LeakyReLU(0.5))
ACTIVATIONS: tuple[Any, ...] = (nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU)


class Add(nn.Module):
    """The sum of two values."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Concatenate(nn.Module):
    """The channels of several values."""

    def forward(self, *values: Tensor) -> Tensor:
        return torch.cat(values, 1)


class Mean(nn.Module):
    """The mean of each channel's image."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = tuple(range(2, 2 + dims))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


class Network(nn.Module):
    """Modules, each with the numbers of the values that it reads: value 0 is the input.

    Args:
        steps: a module and its sources.
        outputs: the values that are returned.
    """

    def __init__(self, steps: Sequence[tuple[nn.Module, tuple[int, ...]]], outputs: Sequence[int]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(module for module, _ in steps)
        self.sources = tuple(sources for _, sources in steps)
        self.outputs = tuple(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for module, sources in zip(self.steps, self.sources, strict=True):
            values.append(module(*(values[source] for source in sources)))
        return tuple(values[output] for output in self.outputs)


@dataclass(frozen=True)
class Case:
    """A network and the shape of its input."""

    network: Network
    shape: tuple[int, ...]
    density: float
    seed: int


@st.composite
def cases(draw: st.DrawFn, exact: bool) -> Case:
    """Networks of 1 to 3 dimensions.

    Args:
        draw: of hypothesis.
        exact: only what float32 computes without rounding where weights and inputs are small integers.
    """
    dims = draw(st.integers(1, 3))
    most = (24, 11, 6)[dims - 1]
    images = draw(st.sampled_from([2, 3, 7, 8, 9, 17, 33] if not exact else [1, 2, 7, 8, 9, 16, 25]))
    size = tuple(draw(st.integers(2, most)) for _ in range(dims))
    channels = draw(st.integers(1, 4))
    builder = _Builder(draw, dims, exact, [(channels, size)])
    for _ in range(draw(st.integers(1, 6))):
        builder.step()
    network = builder.finished()
    density = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    return Case(network, (images, channels, *size), density, draw(st.integers(0, 1000)))


class _Builder:
    def __init__(
        self, draw: st.DrawFn, dims: int, exact: bool, shapes: list[tuple[int, tuple[int, ...]]]
    ) -> None:
        self.draw, self.dims, self.exact, self.shapes = draw, dims, exact, shapes
        self.steps: list[tuple[nn.Module, tuple[int, ...]]] = []

    def step(self) -> None:
        """One more value, of one that has images; mostly of the last."""
        images = [number for number, (_, size) in enumerate(self.shapes) if size]
        source = self.draw(st.sampled_from([images[-1], images[-1], *images]))
        kinds = ["convolution", "activation", "largest", "mean", "add", "block", "concatenate"]
        kinds += [] if self.exact else ["norm", "norm"]
        getattr(self, f"_{self.draw(st.sampled_from(kinds))}")(source)

    def finished(self) -> Network:
        """The network; what nothing reads is an output."""
        if not any(isinstance(module, CONVOLUTIONS) for module, _ in self.steps):
            self._convolution(len(self.shapes) - 1)
        if self.draw(st.booleans()):
            self._head(max(number for number, (_, size) in enumerate(self.shapes) if size))
        read = {source for _, sources in self.steps for source in sources}
        unread = [number for number in range(1, len(self.shapes)) if number not in read]
        more = self.draw(st.integers(1, len(self.shapes) - 1))
        return Network(self.steps, sorted({*unread, more}))

    def _append(self, module: nn.Module, sources: tuple[int, ...], shape: tuple[int, tuple[int, ...]]) -> int:
        self.steps.append((module, sources))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def _each(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.draw(st.integers(low, high)) for _ in range(self.dims))

    def _convolution(self, source: int, outputs: int | None = None, keep: bool = False) -> int:
        inputs, size = self.shapes[source]
        kernel, dilation = self._each(1, 3), self._each(1, 2)
        stride, padding = self._each(1, 3), self._each(0, 2)
        if keep:
            kernel, dilation, stride = (tuple([n] * self.dims) for n in (3, 1, 1))
            padding = (1,) * self.dims
        after = _size(size, kernel, stride, padding, dilation)
        if min(after) < 1:
            kernel, dilation = (1,) * self.dims, (1,) * self.dims
            after = _size(size, kernel, stride, padding, dilation)
        groups = 1
        if outputs is None:
            groups = self.draw(st.sampled_from([n for n in (1, 1, 2, inputs) if inputs % n == 0]))
            outputs = groups * self.draw(st.integers(1, 4))
        bias = self.draw(st.booleans())
        module = CONVOLUTIONS[self.dims - 1](inputs, outputs, kernel, stride, padding, dilation, groups, bias)
        return self._append(module, (source,), (outputs, after))

    def _relu(self, source: int) -> int:
        return self._append(nn.ReLU(), (source,), self.shapes[source])

    def _activation(self, source: int) -> int:
        make = self.draw(st.sampled_from(EXACT_ACTIVATIONS if self.exact else ACTIVATIONS))
        return self._append(make(), (source,), self.shapes[source])

    def _norm(self, source: int) -> int:
        channels, size = self.shapes[source]
        momentum = self.draw(st.sampled_from([0.1, 0.3, None]))
        affine, tracked = self.draw(st.booleans()), self.draw(st.booleans())
        norm = NORMS[self.dims - 1](channels, 0.05, momentum, affine, tracked)
        return self._append(norm, (source,), (channels, size))

    def _largest(self, source: int) -> int:
        return self._pool(LARGEST[self.dims - 1], source, self._each(1, 3), ceil=self.draw(st.booleans()))

    def _mean(self, source: int) -> int:
        kernel = self._each(1, 3)
        kernel = tuple(1 << (length // 2) for length in kernel) if self.exact else kernel
        return self._pool(MEANS[self.dims - 1], source, kernel)

    def _pool(self, kind: Any, source: int, kernel: tuple[int, ...], ceil: bool = False) -> int:
        channels, size = self.shapes[source]
        stride = self._each(1, 3)
        padding = tuple(self.draw(st.integers(0, length // 2)) for length in kernel)
        pool = kind(kernel, stride, padding, ceil_mode=ceil)
        fits = kind is not nn.AvgPool3d or all(n >= k for n, k in zip(size, kernel, strict=True))  # as torch
        if not fits or min(_size(size, kernel, stride, padding, (1,) * self.dims)) < 1:
            return source
        after = tuple(pool(torch.zeros(1, channels, *size)).shape[2:])
        return self._append(pool, (source,), (channels, after))

    def _add(self, source: int) -> int:
        alike = [number for number, shape in enumerate(self.shapes) if shape == self.shapes[source]]
        other = self.draw(st.sampled_from(alike))
        return source if other == source else self._append(Add(), (source, other), self.shapes[source])

    def _concatenate(self, source: int) -> int:
        size = self.shapes[source][1]
        alike = [number for number, shape in enumerate(self.shapes) if shape[1] == size]
        others = self.draw(st.lists(st.sampled_from(alike), min_size=1, max_size=2))
        channels = sum(self.shapes[number][0] for number in (source, *others))
        return self._append(Concatenate(), (source, *others), (channels, size))

    def _block(self, source: int) -> int:
        """A residual block, perhaps with a norm and ReLU first, or with a convolution as its shortcut."""
        channels = self.shapes[source][0]
        first = source
        if self.draw(st.booleans()):
            first = source if self.exact else self._norm(source)
            first = self._relu(first)
        outputs = self.draw(st.sampled_from([channels, channels, 3]))
        main = self._relu(self._convolution(first, outputs, keep=True))
        main = self._convolution(main, outputs, keep=True)
        shortcut = source
        if outputs != channels:
            shortcut = self._convolution(first, outputs, keep=True)
        if not self.exact and self.draw(st.booleans()):
            main = self._norm(main)
        return self._activation(self._append(Add(), (main, shortcut), self.shapes[main]))

    def _head(self, source: int) -> int:
        channels, size = self.shapes[source]
        if self.draw(st.booleans()) and (not self.exact or _is_power_of_2(math.prod(size))):
            rows = self._append(Mean(self.dims), (source,), (channels, ()))
        else:
            rows = self._append(nn.Flatten(), (source,), (channels * math.prod(size), ()))
        for _ in range(self.draw(st.integers(1, 2))):
            outputs = self.draw(st.integers(1, 5))
            layer = nn.Linear(self.shapes[rows][0], outputs, bias=self.draw(st.booleans()))
            rows = self._append(layer, (rows,), (outputs, ()))
            rows = self._append(nn.ReLU(), (rows,), (outputs, ())) if self.draw(st.booleans()) else rows
        return rows


def _size(size: tuple[int, ...], *window: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        (length + 2 * pad - spread * (reach - 1) - 1) // step + 1
        for length, reach, step, pad, spread in zip(size, *window, strict=True)
    )


def _is_power_of_2(number: int) -> bool:
    return number & (number - 1) == 0


# -- two models that compute the same ---------------------------------------------------------------------


@dataclass
class Twins:
    """A model that is accelerated, and the same in float64 by torch."""

    fast: nn.Module
    exact: nn.Module

    def train(self, mode: bool) -> None:
        self.fast.train(mode)
        self.exact.train(mode)

    def gradients(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, gradient, and what it should be, of every parameter that has one."""
        masks = {weight.name: weight.mask for weight in masked_weights(self.exact)}
        fast = dict(self.fast.named_parameters())
        for name, parameter in self.exact.named_parameters():
            actual, expected = fast[name].grad, parameter.grad
            assert (actual is None) == (expected is None), name
            if actual is None or expected is None:
                continue
            if actual.shape != expected.shape:  # it is packed
                expected = expected[masks[name.removesuffix(".weight")]]
            yield name, actual, expected


def twins(
    model: nn.Module, x: Tensor, density: float, seed: int, integers: bool = True, whole: bool = True
) -> Twins:
    """Both, with weights at random.

    Args:
        model: any model whose every layer a region can have.
        x: an example of its input.
        density: of the weights, 0 to 1.
        seed: of weights and masks.
        integers: whether all parameters are small integers.
        whole: whether all is to be one region.
    """
    torch.manual_seed(seed)
    sparse = sparsefx.sparsify(model, density=1.0)
    with torch.no_grad():
        for name, parameter in sparse.named_parameters():
            if integers:
                parameter.copy_(torch.randint(-1, 2, parameter.shape))
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.normal_()
        for weight in masked_weights(sparse):
            weight.mask.copy_(torch.rand(weight.mask.shape) < density)
            weight.weight.mul_(weight.mask)
    exact = copy.deepcopy(sparse).double()
    fast = accelerate(sparse, (x,), kernels="sparse")
    if whole:
        for mode in (True, False):
            computed = [node.target for node in fast.mode_graph(mode).nodes if node.op.startswith("call")]
            regions = [name for name in computed if "region" in str(name)]
            assert regions, computed
    return Twins(fast, exact)


def whole_numbers(*shape: int) -> Tensor:
    """Small integers, at random, as floats."""
    return torch.randint(-3, 4, shape).float()


def tensors(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def regions(model: nn.Module) -> list[TrainingRegion]:
    return [module for module in model.modules() if isinstance(module, TrainingRegion)]


def step(pair: Twins, x: Tensor, integers: bool = True) -> tuple[Tensor, Tensor]:
    """A forward and a backward pass of both; their inputs, which have gradients."""
    inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    outputs = tensors(pair.fast(inputs[0])), tensors(pair.exact(inputs[1]))
    for actual, expected in zip(*outputs, strict=True):
        equal(actual, expected, exactly=integers, scale=1.0)
    sent = [whole_numbers(*output.shape) if integers else torch.randn(output.shape) for output in outputs[0]]
    torch.autograd.backward(outputs[0], sent)
    torch.autograd.backward(outputs[1], [gradient.double() for gradient in sent])
    return inputs


def equal(actual: Tensor, expected: Tensor, exactly: bool, scale: float = 0.0, what: str = "") -> None:
    """Compare with float64; without ``exactly``, beside the largest number, or ``scale``: terms cancel."""
    assert actual.shape == expected.shape, what
    largest = max(scale, float(expected.detach().abs().max())) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.detach().double(),
        expected.detach(),
        rtol=0,
        atol=0 if exactly else 3e-5 * largest,
        msg=lambda text: f"{what}: {text}",
    )


def check_step(pair: Twins, x: Tensor, integers: bool = True) -> None:
    """Both compute the same outputs, gradients and buffers."""
    one, other = step(pair, x, integers)
    assert one.grad is not None
    assert other.grad is not None
    check_gradients(pair, integers)
    equal(one.grad, other.grad, integers, scale=1.0, what="input")
    buffers = dict(pair.fast.named_buffers())
    for name, expected in pair.exact.named_buffers():
        equal(buffers[name], expected.double(), False, scale=1.0, what=name)


def check_gradients(pair: Twins, integers: bool = True) -> None:
    """All parameters of both have the same gradients."""
    found = list(pair.gradients())
    scale = max((float(expected.abs().max()) for _, _, expected in found if expected.numel()), default=0.0)
    for name, actual, expected in found:
        # What normalisation cancels, such as the gradient of a bias before it, is a sum of large terms.
        equal(actual, expected, integers, scale=max(1.0, 0.1 * scale), what=name)


class Margin(TorchDispatchMode):
    """How near any ReLU or largest of a window is to giving another gradient, beside the values' size."""

    def __init__(self) -> None:
        super().__init__()
        self.least = math.inf

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("relu", "relu_", "threshold", "leaky_relu"):
            self._note(args[0].detach().abs(), args[0])
        if name.startswith("max_pool") and name.endswith("with_indices"):
            self._note(_gaps(*args), args[0])
        return function(*args, **(kwargs or {}))

    def _note(self, distances: Tensor, values: Tensor) -> None:
        distances = distances[distances > 0]  # what is equal in float64 is equal in any arithmetic
        if distances.numel():
            self.least = min(self.least, float(distances.min()) / float(values.abs().max()))


def _gaps(x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, *_: Any) -> Tensor:
    """From the largest of each window to the next."""
    dims = len(kernel)
    pads = [padding] * dims if isinstance(padding, int) else list(padding)
    windows = F.pad(x.detach(), [n for pad in reversed(pads) for n in (pad, pad)], value=-math.inf)
    for axis, (length, move) in enumerate(zip(kernel, stride or kernel, strict=True), x.dim() - dims):
        windows = windows.unfold(axis, length, move)
    windows = windows.flatten(-dims)
    if windows.shape[-1] < 2:
        return x.new_zeros(0)
    first, second = windows.topk(2).values.unbind(-1)
    return (first - second)[second > -math.inf]


@contextmanager
def margin() -> Iterator[Margin]:
    """What is run inside is watched."""
    with Margin() as found:
        yield found
