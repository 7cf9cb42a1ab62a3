"""Thin dense networks: the sizes that Mostafa & Wang published, and the width that meets a size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.errors import ArgumentError
from sparsefx.experiments.networks import NETWORKS, network
from sparsefx.experiments.networks.thin_dense import sparse_parameters, thin_width

# sparsity, parameters of the sparse WRN-28-2, the width that was published (of 2), parameters at that width
WRN_28 = [
    (0.9, 161_242, 0.75, 209_130),
    (0.8, 306_394, 0.98, 356_376),
    (0.7, 451_546, 1.15, 491_845),
    (0.6, 596_698, 1.33, 652_093),
    (0.5, 741_850, 1.47, 795_477),
]
MASK_WORDS = 1_451_520 // 32


def parameters(name: str, width: float) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network(name).build(width=width).parameters())


def size_of_sparse(name: str, density: float, *, count_mask_bits: bool) -> int:
    with torch.device("meta"):
        model = network(name).build()
    dense = network(name).dense_layers("dynamic-sparse")
    return sparse_parameters(model, density, dense=dense, count_mask_bits=count_mask_bits)


@pytest.mark.parametrize(
    ("sparsity", "sparse", "width", "thin"),
    [WRN_28[0], *(pytest.param(*row, marks=pytest.mark.slow) for row in WRN_28[1:])],
)
def test_wide_resnets_of_mostafa_and_wang(sparsity: float, sparse: int, width: float, thin: int) -> None:
    assert parameters("wrn-28-2", width / 2) == thin
    assert size_of_sparse("wrn-28-2", 1 - sparsity, count_mask_bits=False) == sparse
    budget = size_of_sparse("wrn-28-2", 1 - sparsity, count_mask_bits=True)
    assert budget == sparse + MASK_WORDS
    assert 2 * thin_width(network("wrn-28-2"), budget) == pytest.approx(width, abs=0.02)


@pytest.mark.parametrize(
    ("width", "millions"),
    [pytest.param(*row, marks=pytest.mark.slow) for row in [(0.54, 8.17), (0.46, 5.77)]],
)
def test_resnets_of_mostafa_and_wang(width: float, millions: float) -> None:
    assert round(parameters("resnet-50", width) / 1e6, 2) == millions
    density = {0.54: 0.2, 0.46: 0.1}[width]
    budget = size_of_sparse("resnet-50", density, count_mask_bits=True)
    assert thin_width(network("resnet-50"), budget) == pytest.approx(width, abs=0.01)


@pytest.mark.parametrize("thin", [WRN_28[0][3], pytest.param(WRN_28[-1][3], marks=pytest.mark.slow)])
def test_a_size_that_exists_is_met_exactly(thin: int) -> None:
    width = thin_width(network("wrn-28-2"), thin)
    assert parameters("wrn-28-2", width) == thin


@properties(15)
@given(target=st.integers(1_000, 266_610))
def test_no_other_width_is_nearer(target: int) -> None:
    """LeNet 300-100 has at most 400 sizes: look at them all."""
    width = thin_width(network("lenet-300-100"), target)
    sizes = {first: first * 785 + first * second + second + second * 10 + 10 for first, second in WIDTHS}
    nearest = min(abs(size - target) for size in sizes.values())
    assert abs(parameters("lenet-300-100", width) - target) <= nearest


WIDTHS = {(max(1, int(300 * f / 1e4 + 0.5)), max(1, int(100 * f / 1e4 + 0.5))) for f in range(1, 10_001)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "resnet-50" else [])
        for name in NETWORKS
        if name != "resnet-50-fan-in"
    ],
)
def test_size_rises_with_width(name: str) -> None:
    sizes = [parameters(name, step / 6) for step in range(1, 7)]
    assert sizes == sorted(set(sizes))


def test_full_width_and_limits() -> None:
    lenet = network("lenet-300-100")
    assert thin_width(lenet, 266_610) == pytest.approx(1, abs=0.002)
    assert parameters("lenet-300-100", thin_width(lenet, 266_610)) == 266_610
    with pytest.raises(ArgumentError, match="parameters=266611 is outside what lenet-300-100 can have"):
        thin_width(lenet, 266_611)
    with pytest.raises(ArgumentError, match="parameters=100 is outside"):
        thin_width(lenet, 100)


def test_density_is_checked() -> None:
    with pytest.raises(ArgumentError, match=r"density=0 is outside \(0, 1\]"):
        sparse_parameters(network("lenet-300-100").build(), 0)
