"""What kernels of training cannot compute is refused, by a message that says what to do."""

import numpy as np
import pytest
import torch
from torch import nn
from training_networks import Add, Concatenate, Network, check_step, twins, whole_numbers

from sparsefx.errors import ArgumentError
from sparsefx.kernels.training.forms import as_int32
from sparsefx.kernels.training.memory_pool import POOL

X = torch.zeros(5, 2, 6, 6)


def refuses(model: nn.Module, example: torch.Tensor, given: torch.Tensor, message: str) -> None:
    pair = twins(model, example, 0.5, seed=0)
    with pytest.raises(ArgumentError, match=message):
        pair.fast(given)
    check_step(pair, whole_numbers(*example.shape), integers=False)  # nothing is left half done


def test_channels():
    refuses(nn.Sequential(nn.Conv2d(2, 3, 3)), X, torch.zeros(5, 3, 6, 6), "has not 2 channels")
    pool = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 3))
    refuses(pool, X, torch.zeros(5, 1, 6, 6), "has not 2 channels")
    norm = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3, groups=1))
    refuses(norm, X, torch.zeros(5, 4, 6, 6), "has not 2 channels")
    refuses(nn.Sequential(nn.Linear(6, 5)), torch.zeros(5, 6), torch.zeros(5, 7), "has not 6 channels")


def test_sizes():
    head = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2))
    for size in (3, 12):
        refuses(head, X, torch.zeros(5, 2, size, size), "a linear layer takes images of")
    refuses(nn.Sequential(nn.Conv2d(2, 3, 3)), X, torch.zeros(5, 2, 2, 6), "too small for a window of")
    layers = [(nn.Conv2d(2, 3, 3), (0,)), (nn.Conv2d(2, 3, 2, stride=2, padding=1), (0,)), (Add(), (1, 2))]
    refuses(Network(layers, [3]), X, torch.zeros(5, 2, 8, 8), "cannot be added up")


def test_dimensions():
    norm = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    refuses(norm, torch.zeros(4, 6), torch.zeros(2, 5, 6), "has not 2 dimensions")
    refuses(nn.Sequential(nn.Conv2d(2, 3, 3)), X, torch.zeros(2, 6, 6), "has not 4 dimensions")


@pytest.mark.parametrize("type_", [torch.float64, torch.int32, torch.bfloat16])
def test_types(type_: torch.dtype):
    refuses(nn.Sequential(nn.Linear(6, 5)), torch.zeros(5, 6), torch.zeros(5, 6, dtype=type_), str(type_))


def test_devices():
    refuses(nn.Sequential(nn.Linear(6, 5)), torch.zeros(5, 6), torch.zeros(5, 6, device="meta"), "on meta")


def test_torch_export_is_told_to_take_the_export():
    pair = twins(nn.Sequential(nn.Linear(6, 5)), torch.zeros(5, 6), 0.5, seed=0)
    with pytest.raises(Exception, match=r"an input is a FakeTensor.* what sparsefx.export"):
        torch.export.export(pair.fast, (torch.zeros(5, 6),), strict=False)


def test_functional_call_computes_with_what_it_is_given():
    pair = twins(nn.Sequential(nn.Linear(6, 5)), torch.zeros(5, 6), 0.5, seed=0)
    x = whole_numbers(9, 6)
    pair.fast(x)
    given = {name: 2 * parameter.detach() for name, parameter in pair.fast.named_parameters()}
    output = torch.func.functional_call(pair.fast, given, (x,))
    assert torch.equal(output.double(), 2 * pair.exact(x.double()))


def test_concatenated_sizes():
    layers = [(nn.Conv2d(2, 3, 3), (0,)), (nn.Conv2d(2, 3, 2, stride=2, padding=1), (0,))]
    both = Network([*layers, (Concatenate(), (1, 2))], [3])
    refuses(both, X, torch.zeros(5, 2, 8, 8), "cannot be concatenated")


def test_parameters_of_another_type():
    pair = twins(nn.Sequential(nn.Linear(6, 5)), torch.zeros(5, 6), 0.5, seed=0)
    pair.fast.double()
    with pytest.raises(ArgumentError, match=r"a parameter is of torch.float64 on cpu"):
        pair.fast(torch.zeros(5, 6))


def test_autocast_takes_and_gives_gradients_of_its_type():
    pair = twins(nn.Sequential(nn.Linear(6, 5)), torch.zeros(5, 6), 0.5, seed=0)
    x = whole_numbers(5, 6).bfloat16().requires_grad_()
    with torch.autocast("cpu"):
        output = pair.fast(x)
    output.sum().backward()
    assert output.dtype == torch.float32
    assert torch.equal(output.double(), pair.exact(x.double()))
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_torchs_default_type_and_device_do_not_matter():
    pair = twins(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), X, 0.5, seed=0, integers=False)
    x = whole_numbers(*X.shape)
    torch.set_default_dtype(torch.float64)
    POOL.clear()
    try:
        with torch.device("meta"):
            output = pair.fast(x)
            output.backward(torch.ones(output.shape, dtype=torch.float32, device="cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(output.isfinite(), torch.ones_like(output, dtype=torch.bool))
    torch.testing.assert_close(output.double(), pair.exact(x.double()), rtol=0, atol=1e-5)


def test_tables_of_32_bits():
    assert as_int32(np.array([2**31 - 1, 0])).dtype == np.int32
    for numbers in ([2**31], [-(2**31), 1]):
        with pytest.raises(ArgumentError, match="tell places by 32 bits"):
            as_int32(np.array(numbers))
