"""Densities per layer: published vectors, exact totals, saturation, arguments."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx._common.distributions import (
    DISTRIBUTIONS,
    active_counts,
    erdos_renyi,
    erdos_renyi_kernel,
    set_linear,
    uniform,
)
from sparsefx.errors import ArgumentError

LENET_300_100 = [torch.Size(shape) for shape in ((300, 784), (100, 300), (10, 100))]
LENET_5 = [torch.Size(shape) for shape in ((20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500))]
VGG16_D = [
    *(torch.Size((out, into, 3, 3)) for out, into in ((64, 3), (64, 64), (128, 64), (128, 128))),
    *(torch.Size((out, into, 3, 3)) for out, into in ((256, 128), (256, 256), (256, 256), (512, 256))),
    *(torch.Size((512, 512, 3, 3)),) * 5,
    *(torch.Size(shape) for shape in ((512, 512), (512, 512), (10, 512))),
]

shapes = st.lists(
    st.lists(st.integers(1, 12), min_size=2, max_size=5).map(torch.Size), min_size=1, max_size=12
)
densities = st.floats(0, 1)
names = st.sampled_from(sorted(DISTRIBUTIONS))


@pytest.mark.parametrize(
    ("layers", "density", "expected"),
    [
        (LENET_300_100, 0.05, [0.0385, 0.1113, 0.9185]),
        (LENET_300_100, 0.01, [0.0077, 0.0223, 0.1837]),
        (LENET_300_100, 0.20, [0.1622, 0.4694, 1]),
        (LENET_5, 0.05, [0.7261, 0.0375, 0.0381, 1]),
        (LENET_5, 0.20, [1, 0.1869, 0.1898, 1]),
        (
            VGG16_D,
            0.05,
            [1, 0.2747, 0.2030, 0.1343, 0.0999, 0.0664, 0.0664, 0.0496, *[0.0330] * 5, 0.2952, 0.2952, 1],
        ),
    ],
)
def test_erk_densities_of_known_networks(layers, density, expected):
    assert erdos_renyi_kernel(layers, density) == pytest.approx(expected, abs=5.1e-5)


def test_erdos_renyi_ignores_the_kernel():
    assert erdos_renyi(LENET_5, 0.05) == pytest.approx([1, 0.4134, 0.0192, 0.6024], abs=5.1e-5)
    assert erdos_renyi(LENET_300_100, 0.05) == pytest.approx(erdos_renyi_kernel(LENET_300_100, 0.05))


def test_epsilon_of_lenet_300_100():
    first = erdos_renyi_kernel(LENET_300_100, 0.05)[0]
    assert first * 300 * 784 / 1084 == pytest.approx(8.350063, abs=5e-7)


def test_set_spreads_weights_by_fan_in_plus_fan_out():
    layers = [torch.Size((50, 40, 3, 3)), torch.Size((30, 60))]
    wanted = [d * math.prod(s) for d, s in zip(set_linear(layers, 0.01), layers, strict=True)]
    assert wanted == pytest.approx([0.01 * 19800 / 2] * 2)


def test_uniform_is_uniform():
    assert uniform(VGG16_D, 0.05) == [0.05] * 16


def test_counts_of_lenet_by_hand():
    assert active_counts(LENET_300_100, 0.05) == [11760, 1500, 50]
    assert active_counts([torch.Size((1, 3))] * 3, 0.5) == [2, 1, 1]


@properties()
@given(shapes, densities, names)
def test_counts_sum_exactly_and_fit(layers, density, name):
    sizes = [math.prod(shape) for shape in layers]
    counts = active_counts(layers, density, name)
    wanted = DISTRIBUTIONS[name](layers, density)
    assert sum(counts) == round(density * sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    asked = [d * n for d, n in zip(wanted, sizes, strict=True)]
    if all(ask >= shape[0] for ask, shape in zip(asked, layers, strict=True)):
        assert all(abs(count - ask) < 1 + 1e-6 for count, ask in zip(counts, asked, strict=True))


@properties()
@given(shapes, st.floats(0, 1).map(lambda d: d**3), names)
def test_every_output_keeps_a_weight_where_the_total_allows(layers, density, name):
    counts = active_counts(layers, density, name)
    total = round(density * sum(map(math.prod, layers)))
    if sum(shape[0] for shape in layers) <= total:
        assert all(count >= shape[0] for count, shape in zip(counts, layers, strict=True))
    elif len(layers) <= total:
        assert min(counts) >= 1


@properties()
@given(shapes, densities, densities, names)
def test_counts_fall_with_the_density(layers, one, other, name):
    low, high = sorted((one, other))
    pairs = zip(active_counts(layers, low, name), active_counts(layers, high, name), strict=True)
    assert all(below <= above + 1 for below, above in pairs)  # 1: of the rounding


def test_small_layers_take_from_large_ones():
    head = [torch.Size((16, 100)), torch.Size((1, 16))]
    assert active_counts(head, 0.02) == [31, 1]
    depthwise = [torch.Size((32, 16, 1, 1)), torch.Size((32, 1, 3, 3))]
    assert active_counts(depthwise, 0.1) == [48, 32]
    assert active_counts(depthwise, 0.05) == [20, 20]  # too few for all outputs: a share of them each
    assert active_counts(depthwise, 0.1, outputs=[32, 4]) == [51, 29]
    assert active_counts([torch.Size((9, 9)), torch.Size((3, 3)), torch.Size((3, 3))], 0.02) == [1, 1, 0]


def test_of_a_function_only_what_it_asks_for_is_rounded_up():
    asked = active_counts([torch.Size((16, 100)), torch.Size((1, 16)), torch.Size((4, 4))], 0.5, _asked)
    assert asked == [31, 1, 0]


def _asked(layers, density):
    return [0.02, 0.02, 0.0]


@properties()
@given(shapes, densities, names)
def test_densities_meet_the_budget(layers, density, name):
    sizes = [math.prod(shape) for shape in layers]
    shares = DISTRIBUTIONS[name](layers, density)
    assert all(0 <= share <= 1 for share in shares)
    assert math.fsum(d * n for d, n in zip(shares, sizes, strict=True)) == pytest.approx(
        density * sum(sizes), rel=1e-9, abs=1e-9
    )


@properties()
@given(shapes, densities, densities, names)
def test_densities_grow_with_the_total(layers, one, other, name):
    low, high = sorted((one, other))
    pairs = zip(DISTRIBUTIONS[name](layers, low), DISTRIBUTIONS[name](layers, high), strict=True)
    assert all(below <= above + 1e-9 for below, above in pairs)


@properties()
@given(shapes, names)
def test_density_one_is_dense_and_zero_is_empty(layers, name):
    assert active_counts(layers, 1.0, name) == [math.prod(shape) for shape in layers]
    assert active_counts(layers, 0.0, name) == [0] * len(layers)


def test_a_callable_sets_its_own_total():
    def halves(layers, density):
        return [0.5] * len(layers)

    assert active_counts([torch.Size((1, 3)), torch.Size((1, 3))], 0.1, halves) == [2, 1]


@pytest.mark.parametrize("returned", [[0.5], [0.5, 1.5], [0.5, -0.1], [0.5, math.nan]])
def test_a_callable_is_held_to_its_contract(returned):
    def mine(layers, density):
        return returned

    with pytest.raises(ArgumentError, match=r"distribution 'mine' returned .* for 2 layers"):
        active_counts([torch.Size((2, 3))] * 2, 0.1, mine)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ArgumentError, match=r"distribution='unifrom' is not known; did you mean 'uniform'"):
        active_counts(LENET_5, 0.1, "unifrom")


@pytest.mark.parametrize("density", [-0.1, 1.01, math.nan])
@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_density_out_of_range(density, name):
    with pytest.raises(ArgumentError, match=r"density=.* is not in \[0, 1\]"):
        DISTRIBUTIONS[name](LENET_5, density)
    with pytest.raises(ArgumentError, match=r"density=.* is not in \[0, 1\]"):
        active_counts(LENET_5, density, name)


@pytest.mark.parametrize("shape", [(5,), (0, 3)])
def test_shape_without_fan_in(shape):
    with pytest.raises(ArgumentError, match=r"has no \(out, in\) dimensions"):
        erdos_renyi_kernel([torch.Size(shape)], 0.1)


def test_what_is_neither_a_name_nor_a_function():
    with pytest.raises(ArgumentError, match=r"distribution=\{'0': 0.5\} is neither a name nor a function"):
        active_counts([torch.Size((3, 3))], 0.1, {"0": 0.5})  # type: ignore[arg-type]
