"""Pictures of masks show the masks."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from helpers import mask_layers, masked_conv_net, masked_mlp, random_mask
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx import ArgumentError, plot
from sparsefx.masking.layers import mask_layer
from sparsefx.plot.masks import averaged

pytest.importorskip("matplotlib")


def images(figure: Any) -> list[Tensor]:
    figure.savefig(io.BytesIO())
    return [torch.as_tensor(panel.images[0].get_array().data) for panel in figure.axes if panel.images]


def test_small_masks_are_drawn_as_they_are() -> None:
    model = masked_conv_net()
    drawn = images(plot.masks(model))
    expected = [masked.mask.flatten(1).float() for masked in sparsefx.masked_weights(model)]
    assert all(map(torch.equal, drawn, expected))
    assert len(drawn) == len(expected) == 3


def test_without_a_mask_what_is_not_zero_is_drawn() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, -1.0]]))
    (image,) = images(plot.masks(nn.Sequential(layer)))
    assert image.tolist() == [[0, 1, 0], [1, 0, 1]]


def test_layers_can_be_chosen() -> None:
    figure = plot.masks(masked_mlp(4, 3, 2), ["2"])
    (image,) = images(figure)
    assert image.shape == (2, 3)
    assert figure.axes[0].get_title().splitlines()[0] == "2"


def test_rows_of_a_transposed_convolution_are_outputs() -> None:
    conv = nn.ConvTranspose1d(4, 6, 2, groups=2)
    mask_layer(conv, random_mask(conv.weight.shape, 0.5, torch.Generator().manual_seed(0)))
    (image,) = images(plot.masks(nn.Sequential(conv)))
    assert image.shape == (6, 4)
    for output in range(6):
        group, column = divmod(output, 3)
        expected = conv.mask[2 * group : 2 * group + 2, column].flatten()
        assert image[output].tolist() == expected.tolist()


def test_masked_parameters_outside_of_layers_are_drawn() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Parameter(torch.randn(3, 4))
            self.vector = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.projection), self.vector)

    figure = plot.masks(sparsefx.sparsify(Functional(), density=0.5))
    assert [image.shape for image in images(figure)] == [(3, 4), (1, 3)]
    assert [panel.get_title().splitlines()[0] for panel in figure.axes[:2]] == ["projection", "vector"]


@properties(60)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(0, 100))
def test_averages_are_those_of_blocks(rows: int, columns: int, most: int, seed: int) -> None:
    matrix = random_mask((rows, columns), 0.4, torch.Generator().manual_seed(seed))
    found = averaged(matrix, most)
    assert len(found) <= most
    size = -(-rows // most)
    expected = [
        [block[:, column].double().mean().item() for column in range(columns)] for block in matrix.split(size)
    ]
    assert found.tolist() == [pytest.approx(row) for row in expected]


def test_large_masks_are_averaged() -> None:
    layer = nn.Linear(800, 640)
    mask_layer(layer, random_mask(layer.weight.shape, 0.1, torch.Generator().manual_seed(0)))
    figure = plot.masks(nn.Sequential(layer))
    (image,) = images(figure)
    assert image.shape == (160, 160)
    assert image.mean().item() == pytest.approx(0.1, abs=1e-6)
    black = f"{image.max().item():.0%}"
    assert figure.axes[0].get_title() == f"0\n640 x 800, 10.00% active (black: {black})"


def test_many_layers_with_names_of_any_kind() -> None:
    model = nn.Module()
    for number in range(20):
        model.add_module(f"$_{number}$<&\a", nn.Linear(2, 2))
    assert len(images(plot.masks(mask_layers(model)))) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "model must be a torch.nn.Module, got int"),
        ((nn.ReLU(),), "there is no layer to draw"),
        ((nn.Sequential(nn.Linear(2, 2)), "0"), "layers='0' is one name; pass a list of names, ['0']"),
        ((nn.Sequential(nn.Linear(2, 2)), ["1"]), "layer='1' is not known; known: 0"),
        ((nn.Sequential(nn.Linear(2, 2)), []), "there is no layer to draw"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        plot.masks(*arguments)
