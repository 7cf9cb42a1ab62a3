"""What regions compute element by element: each operation against torch's, at all magnitudes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsefx
from sparsefx.kernels.runtime.region import SparseRegion

OPERATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "clamp": lambda x: x.clamp(min=-3.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky relu": F.leaky_relu,
    "leaky relu by its slope": lambda x: F.leaky_relu(x, 0.2),
    "a number added": lambda x: x + 3,
    "added to a number": lambda x: 0.5 + x,
    "a number subtracted": lambda x: x - 0.25,
    "subtracted from a number": lambda x: 1.0 - x,
    "times a number": lambda x: -1.5 * x,
    "by a number": lambda x: x / 3,
    "negative": lambda x: -x,
    "square": lambda x: x.square(),
    "second power": lambda x: x**2,
    "third power": lambda x: torch.pow(x, 3.0),
    "a value added": lambda x: x + F.relu(x),
    "times a value": lambda x: x * torch.sigmoid(1.702 * x),
    "larger of two": lambda x: torch.maximum(x, 1 - x),
    "gelu in parts": lambda x: (
        0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    ),
}
MAGNITUDES = [0.0, 1e-30, 1e-8, 1e-3, 0.1, 0.7, 1.0, 3.0, 8.0, 19.0, 21.0, 86.0, 89.0, 200.0, 1e10, 1e37]


class Elementwise(nn.Module):
    """An operation, and a layer that hands on what it is given."""

    def __init__(self, operation, layer):
        super().__init__()
        self.operation, self.layer = operation, layer

    def forward(self, x):
        return self.layer(self.operation(x))


def convolution(channels):
    layer = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def linear(channels):
    layer = nn.Linear(channels, channels, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def exported(operation, layer, x):
    model = Elementwise(operation, layer).eval()
    compact = sparsefx.export(model, (x,), kernels="sparse")
    left = [node for node in compact.graph.nodes if node.op != "placeholder" and node.users]
    assert len(left) == 1, left
    assert isinstance(compact.get_submodule(left[0].target), SparseRegion)
    return compact


@torch.no_grad()
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_images(name):
    values = torch.tensor([sign * value for value in MAGNITUDES for sign in (1, -1)])
    x, operation = values.reshape(1, 4, 2, 4), OPERATIONS[name]
    compact = exported(operation, convolution(4), torch.randn(1, 4, 2, 4))
    torch.testing.assert_close(compact(x), operation(x), rtol=1e-5, atol=1e-6)
    special = torch.full_like(x, torch.nan)
    special[:, 1], special[:, 2] = torch.inf, -torch.inf
    # In float32 torch's GELU of infinity is NaN in some builds and inf in others.
    wanted = operation(special.double())[0, :, 0, 0].isnan()
    for extreme in (compact(special), compact(special.repeat(3, 1, 5, 5))):
        assert extreme[:, 0].isnan().all()
        assert extreme[0, :, 0, 0].isnan().equal(wanted)


@torch.no_grad()
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_rows(name):
    x, operation = 4 * torch.randn(3, 5, 7), OPERATIONS[name]
    compact = exported(operation, linear(7), torch.randn(2, 4, 7))
    torch.testing.assert_close(compact(x), operation(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.leaky_relu(x, 1.5),
        lambda x: F.elu(x, 0.5),
        lambda x: x**4,
        lambda x: torch.add(x, 1, alpha=2),
        lambda x: torch.div(x, 2, rounding_mode="floor"),
        lambda x: x / 0,
        lambda x: x * 1e300,
        lambda x: torch.sub(x, F.relu(x)),
    ],
)
def test_other_operations_stay_outside(operation):
    x = torch.randn(1, 4, 3, 3)
    compact = sparsefx.export(Elementwise(operation, convolution(4)).eval(), (x,), kernels="sparse")
    assert torch.equal(compact(x), operation(x))
    assert any(isinstance(module, SparseRegion) for module in compact.modules())
