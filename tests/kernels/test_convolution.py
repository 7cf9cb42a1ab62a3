"""Sparse convolutions equal torch's, whatever their form, and touch nothing but their own memory."""

import os
import subprocess
import sys
from pathlib import Path

import kernel_programs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from kernel_programs import Case, cases, region_of

from sparsefx.kernels.packed import unpack


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def close(output, expected):
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_equals_torch(case: Case):
    x, weight, bias = case.tensors()
    close(region_of(case, weight, bias)(x), case.expected(x, weight, bias))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_a_residual_and_an_activation(case: Case):
    x, weight, bias = case.tensors()
    expected = case.expected(x, weight, bias)
    residual = torch.randn(expected.shape)
    region = region_of(case, weight, bias, residual=1, bounds=(0.0, 6.0))
    close(region(x, residual), (expected + residual).clamp(0, 6))


@settings(max_examples=50, deadline=None)
@given(cases())
def test_packing_keeps_the_weight(case: Case):
    _, weight, bias = case.tensors()
    assert torch.equal(unpack(case.packed(weight, bias), tuple(weight.shape), case.groups), weight)


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("images", [1, 16])
def test_threads_compute_the_same(threads, number, images):
    case = Case(images=images, size=(9, 11), outputs=7)
    x, weight, bias = case.tensors()
    region = region_of(case, weight, bias)
    alone = region(x)
    threads(number)
    assert torch.equal(region(x), alone)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.repeat_interleave(2, dim=0)[::2],
        lambda x: x[:1].expand(x.shape),
        lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    ],
)
def test_any_strides(form):
    case = Case(images=4)
    x, weight, bias = case.tensors()
    x = form(x)
    close(region_of(case, weight, bias)(x), case.expected(x, weight, bias))


def test_empty_rows_give_the_bias():
    case = Case(density=0.0)
    x, weight, bias = case.tensors()
    output = region_of(case, weight, bias)(x)
    assert torch.equal(output, bias[None, :, None, None].expand_as(output))


def test_no_images():
    case = Case()
    x, weight, bias = case.tensors()
    assert region_of(case, weight, bias)(x[:0]).shape == (0, 4, 6, 5)


def test_nan_and_infinity_go_where_nonzero_weights_read_them():
    case = Case(images=1, inputs=2, outputs=2, density=1.0)
    x, weight, bias = case.tensors()
    weight[0, 0] = 0
    x[0, 0, 4, 4] = torch.nan
    x[0, 1, 0, 0] = torch.inf
    output, expected = region_of(case, weight, bias)(x), case.expected(x, weight, bias)
    assert torch.equal(output[0, 1].isnan(), expected[0, 1].isnan())
    assert not output[0, 0, 4, 4].isnan()  # nothing of the first channel reads it
    assert output[0, :, :2, :2].isinf().equal(expected[0, :, :2, :2].isinf())


def test_small_numbers_are_not_flushed_to_zero():
    case = Case(images=1, inputs=1, outputs=1, density=1.0)
    x, weight, _ = case.tensors()
    x, weight = torch.full_like(x, 1e-20), torch.full_like(weight, 1e-20)
    x *= 1e-2
    output = region_of(case, weight, torch.zeros(1))(x)
    assert output.count_nonzero() == output.numel()
    assert torch.equal(output, case.expected(x, weight, torch.zeros(1)))


GUARDED = """
import ctypes, mmap, sys
import torch
from kernel_programs import Case, region_of
from sparsefx.kernels import plan
from sparsefx.kernels.running import run

PAGE = mmap.PAGESIZE
kept = []

def guarded(size, front):
    "Memory of so many bytes that ends, or begins, where nothing may be touched."
    pages = -(-size // PAGE) + 2
    whole = mmap.mmap(-1, pages * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    for forbidden in (start, start + (pages - 1) * PAGE):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), PAGE, 0) == 0
    kept.append(whole)
    place = PAGE if front else (pages - 1) * PAGE - size
    return torch.frombuffer(whole, dtype=torch.uint8, count=size, offset=place)

def moved(tensor, front):
    memory = guarded(max(tensor.numel() * 4, 4), front)[: tensor.numel() * 4]
    result = memory.view(tensor.dtype).reshape(tensor.shape)
    result.copy_(tensor)
    return result

for number, front in enumerate([True, False]):
    plan._allocate = lambda size: guarded(size - size % 64, front)  # the kernels need whole vectors
    for case in CASES:
        x, weight, bias = case.tensors()
        region = region_of(case, weight, bias)
        expected = case.expected(x, weight, bias)
        weights = [moved(tensor, front) for tensor in region.tensors()]
        output = moved(torch.zeros_like(expected), front)
        run(region.program, [moved(x, front)], [output], weights)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
print("untouched")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by mprotect")
def test_touches_only_its_own_memory():
    listed = [
        Case(images, size, stride=stride, padding=padding, groups=groups)
        for images in (1, 3, 16, 17)
        for size, stride, padding in [
            ((6, 5), (1, 1), (1, 1)),
            ((7, 9), (2, 2), (0, 2)),
            ((13, 4), (3, 1), (2, 0)),
        ]
        for groups in (1, 2)
    ]
    text = f"from kernel_programs import Case\nCASES = {listed!r}\n" + GUARDED
    paths = os.pathsep.join([str(Path(kernel_programs.__file__).parent), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.stdout.strip() == "untouched", run.stderr[-2000:]
