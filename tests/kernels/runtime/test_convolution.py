"""Sparse convolutions equal torch's, whatever their form, and touch nothing but their own memory."""

import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_programs import Case, cases, region_of
from processes import run_source
from properties import properties

from sparsefx.errors import ArgumentError
from sparsefx.kernels.codegen.vectors import LANES
from sparsefx.kernels.ir.packed import Weights, unpack
from sparsefx.kernels.ir.program import Mean, Pool, RegionProgram, read_program
from sparsefx.kernels.planner import plan, schedule, tiling
from sparsefx.kernels.planner.schedule import Schedule
from sparsefx.kernels.runtime import execution_plan, executor
from sparsefx.kernels.runtime.operators import region

SIZES = [1 << n for n in range(LANES.bit_length())]  # images that lanes can hold


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def close(output, expected):
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@properties(150)
@given(cases())
def test_equals_torch(case: Case):
    x, weight, bias = case.tensors()
    close(region_of(case, weight, bias)(x), case.expected(x, weight, bias))


@pytest.mark.parametrize("channels", [15, 16, 17, 31, 40])
@pytest.mark.parametrize("images", [1, 3, 16, 18])
def test_channels_that_are_neighbours_in_memory(channels, images):
    case = Case(images=images, inputs=channels, outputs=2 * channels)
    x, weight, bias = case.tensors()
    x = x.contiguous(memory_format=torch.channels_last)
    close(region_of(case, weight, bias)(x), case.expected(x, weight, bias))


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 40), (16, 16), (33, 5), (40, 17)])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100, 300])
def test_rows(inputs, outputs, rows):
    case = Case(size=(), inputs=inputs, outputs=outputs, window=(), stride=(), padding=(), dilation=())
    x = torch.randn(rows, inputs)
    _, weight, bias = case.tensors()
    close(region_of(case, weight, bias)(x), torch.nn.functional.linear(x, weight, bias))


@properties(60)
@given(cases(), st.integers(0, 2**31))
def test_every_tiling_equals_torch(case: Case, number: int):
    x, weight, bias = case.tensors()
    with any_tiling(number):
        close(region_of(case, weight, bias)(x), case.expected(x, weight, bias))


@contextmanager
def any_tiling(number: int):
    """Plans take one of all tilings, which depends on the number."""

    def chosen(item, size, pitch):
        every = list(tiling.candidates(item, size))
        return every[number % len(every)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "choose_tiling", chosen)
        forget()
        yield
    forget()


def forget():
    for function in (schedule.plan_for, execution_plan.execution_plan_for):
        function.cache_clear()


@properties(40)
@given(
    st.sampled_from([1, 2, 5, 16, 17, 35]),
    st.sampled_from(SIZES),
    st.lists(st.sampled_from(SIZES), min_size=4, max_size=4),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_schedule_computes_the_same(images, part, sizes, number, apart):
    text, tensors, net = chain()
    x = torch.randn(images, 3, 7, 6)
    stages = schedule._stages(read_program(text), [min(size, part) for size in sizes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution_plan, "schedule_for", lambda *_: Schedule(part, apart and number > 1, stages))
        patch.setattr(executor, "available_threads", lambda: number)
        forget()
        close(region([x], tensors, text)[0], net(x))
    forget()


def chain():
    """Three convolutions with a pool and a sum, as a program and as a function."""
    made = [
        Case(size=(7, 6), inputs=a, outputs=b, density=0.5, seed=a + b) for a, b in ((3, 4), (4, 4), (4, 5))
    ]
    weights = [case.tensors()[1:] for case in made]
    stored = Weights()
    begun = [stored.add(case.packed(*pair)) for case, pair in zip(made, weights, strict=True)]
    first, second, third = (
        case.instruction(source=source, weights=places)
        for case, source, places in zip(made, (0, 2, 3), begun, strict=True)
    )
    pool = Pool(1, True, (1, 2, 2), (1, 1, 1), (0, 1, 1))
    second = replace(second, residual=2)

    def net(x):
        hidden = torch.nn.functional.max_pool2d(torch.conv2d(x, *weights[0], padding=1), 2, 1, 1)
        hidden = hidden + torch.conv2d(hidden, *weights[1], padding=1)
        return torch.conv2d(hidden, *weights[2], padding=1)

    return RegionProgram(2, 1, (first, pool, second, third), (4,)).text, list(stored.tensors), net


@properties(25)
@given(cases())
def test_a_residual_and_an_activation(case: Case):
    x, weight, bias = case.tensors()
    expected = case.expected(x, weight, bias)
    residual = torch.randn(expected.shape)
    region = region_of(case, weight, bias, residual=1, bounds=(0.0, 6.0))
    close(region(x, residual), (expected + residual).clamp(0, 6))


@properties(60)
@given(
    st.sampled_from([1, 2, 3, 16]),
    st.tuples(*[st.integers(4, 17)] * 2),
    *[st.tuples(*[st.integers(1, 4)] * 2)] * 2,
    st.booleans(),
    st.booleans(),
)
def test_largest_of_windows(images, size, window, stride, padded, ceil):
    case = Case(images=images, size=size)
    x, weight, bias = case.tensors()
    padding = tuple(w // 2 if padded else 0 for w in window)
    pool = Pool(1, True, (1, *window), (1, *stride), (0, *padding), ceil)
    text = RegionProgram(2, 1, (case.instruction(), pool), (2,)).text
    expected = case.expected(x, weight, bias)
    expected = torch.nn.functional.max_pool2d(expected, window, stride, padding, ceil_mode=ceil)
    close(region([x], list(case.weights(weight, bias)), text)[0], expected)


@pytest.mark.parametrize("images", [1, 16])
def test_a_border_is_less_than_any_number(images):
    case = Case(images=images)
    x, weight, bias = case.tensors()
    bias = bias - 100
    pool = Pool(1, True, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    text = RegionProgram(2, 1, (case.instruction(), pool), (2,)).text
    expected = torch.nn.functional.max_pool2d(case.expected(x, weight, bias), 3, 2, 1)
    close(region([x], list(case.weights(weight, bias)), text)[0], expected)


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 1)])
def test_a_window_with_nan_gives_nan(place):
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0][place] = torch.nan
    text = RegionProgram(2, 1, (Pool(0, True, (1, 2, 2), (1, 2, 2), (0, 0, 0)),), (1,)).text
    (output,) = region([x], list(Weights().tensors), text)
    expected = torch.nn.functional.max_pool2d(x, 2)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@properties(50)
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
    together = region(x)
    close(together, alone)  # the order of sums may depend on how the work is divided
    assert torch.equal(region(x), together)


def test_images_far_apart(tmp_path):
    """More elements from one image to the next than 32 bits tell."""
    case = Case(images=2)
    x, weight, bias = case.tensors()
    apart = 2**31
    memory = torch.from_file(str(tmp_path / "memory"), shared=True, size=apart + x[0].numel())  # no bytes yet
    far = memory.as_strided(x.shape, (apart, *x.stride()[1:])).copy_(x)
    close(region_of(case, weight, bias)(far), case.expected(x, weight, bias))


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
from sparsefx.errors import ArgumentError
from sparsefx.kernels.runtime import execution_plan
from sparsefx.kernels.planner import plan
from sparsefx.kernels.runtime import executor
from sparsefx.kernels.planner import schedule
from sparsefx.kernels.planner import tiling
from sparsefx.kernels.ir.program import read_program
from sparsefx.kernels.runtime.executor import execute

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
    result = memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
    result.copy_(tensor)
    return result

for number, front in enumerate([True, False]):
    executor._allocate = lambda size: guarded(size - size % 64, front)  # the kernels need whole vectors
    for case in CASES:
        x, weight, bias = case.tensors()
        if case.inputs > 16:  # its channels are turned, 16 at a time
            x = x.contiguous(memory_format=torch.channels_last)
        region = region_of(case, weight, bias)
        expected = case.expected(x, weight, bias)
        weights = [moved(tensor, front) for tensor in region.tensors()]
        output = moved(torch.zeros(expected.shape), front)
        for tile in range(0, 40, 7):
            plan.choose_tiling = lambda item, size, pitch: (every := list(tiling.candidates(item, size)))[
                tile % len(every)
            ]
            schedule.plan_for.cache_clear()
            execution_plan.execution_plan_for.cache_clear()
            execute(read_program(region.program), [moved(x, front)], [output], weights)
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
print("untouched")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by mprotect")
def test_touches_only_its_own_memory(tmp_path):
    listed = [
        Case(images, size, stride=stride, padding=padding, groups=groups)
        for images in (1, 7, 15, 17)  # vectors of 8 and of 16 that are full but for one lane, too
        for size, stride, padding, groups in [
            ((6, 5), (1, 1), (1, 1), 2),
            ((7, 9), (2, 2), (0, 2), 1),
            ((13, 4), (3, 1), (2, 0), 1),
        ]
    ]
    listed += [Case(images, inputs=17) for images in (1, 7, 16)]
    text = f"from kernel_programs import Case\nCASES = {listed!r}\n" + GUARDED
    run = run_source(text, tmp_path)
    assert run.stdout.strip() == "untouched", run.stderr[-2000:]


def test_the_mean_of_a_large_image():
    """A single sum would lose what is small beside it."""
    program = RegionProgram(2, 1, (Mean(0),), (1,))
    x = torch.full((1, 1, 512, 512), 0.1)
    (output,) = region([x], list(Weights().tensors), program.text)
    torch.testing.assert_close(output, x[:, :, :1, :1], rtol=1e-5, atol=0)


def test_a_border_beyond_32_bits_is_refused():
    case = Case(size=(8, 8), padding=(6000, 6000), window=(1, 1))
    item = case.instruction()
    text = RegionProgram(2, 1, (item,), (1,)).text
    x, weight, bias = case.tensors()
    with pytest.raises(ArgumentError, match="32 bits"):
        region([x], list(case.weights(weight, bias)), text)
