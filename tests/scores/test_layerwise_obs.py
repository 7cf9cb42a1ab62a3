"""Layer-wise OBS against constrained least squares, and layers' inputs as rows."""

from __future__ import annotations

import pytest
import torch
from helpers import mask_layers
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import MaskedWeight, attach_mask, masked_weights
from sparsefx.scores import ScoringContext, compensated_weights, layerwise_obs
from sparsefx.scores.layer_calls import input_rows, output_rows, weight_rows

LAYERS = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3), (4, 2, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (3, 4, 9)),
    (nn.Conv1d(4, 6, 3), (4, 9)),  # without a batch
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2), (2, 4, 8, 7)),
    (nn.Conv2d(3, 3, 3, padding="same", dilation=2, groups=3), (2, 3, 6, 6)),
    (nn.Conv2d(2, 4, 4, padding="same"), (2, 2, 6, 5)),
    (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 2, 6, 5)),
    (nn.Conv2d(2, 4, 3, padding="valid"), (2, 2, 6, 5)),
    (nn.Conv3d(2, 4, (1, 2, 3), stride=(2, 1, 1), padding=1, groups=2), (2, 2, 4, 5, 6)),
]


def masked(layer: nn.Module, density: float = 1.0, seed: int = 0) -> MaskedWeight:
    (found,) = masked_weights(mask_layers(layer, density, seed))
    return found


def output_error(layer: nn.Module, weight: Tensor, x: Tensor) -> float:
    """``mean |change of the output|^2 / 2`` over rows, when the layer's weight is replaced by ``weight``."""
    before = layer(x)
    old = layer.weight.data
    layer.weight.data = weight
    change = output_rows(masked_weights(layer)[0], (layer(x) - before).detach())
    layer.weight.data = old
    return float(0.5 * change.square().sum() / change.shape[1])


def conv_and_inputs(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return nn.Conv2d(4, 4, 2, groups=2, padding=1).double(), torch.randn(6, 4, 3, 3, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value).split("(")[0])
def test_rows_times_weight_rows_are_the_output(layer, shape):
    torch.manual_seed(0)
    layer = type(layer)(**_arguments(layer)).double()
    x = torch.randn(*shape, dtype=torch.float64)
    weight = masked(layer)
    layer.bias.data.zero_()
    product = input_rows(layer, x) @ weight_rows(weight, layer.weight).transpose(1, 2)
    torch.testing.assert_close(product, output_rows(weight, layer(x)))


def _arguments(layer: nn.Module) -> dict[str, object]:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
    return {name: getattr(layer, name) for name in [*names, "padding_mode"]}


@pytest.mark.parametrize("seed", range(3))
def test_the_saliency_is_the_error_that_one_removal_costs(seed):
    layer, x = conv_and_inputs(seed)
    weight = masked(layer, 0.7, seed)
    context = ScoringContext(layer, [(x[:4], None), (x[4:], None)])
    scores = layerwise_obs(context, damping=0)["weight"]
    for position in weight.mask.nonzero()[::5]:
        keep = weight.mask.clone()
        keep[tuple(position)] = False
        new = compensated_weights(context, {"weight": keep}, damping=0)["weight"]
        assert output_error(layer, new, x) == pytest.approx(float(scores[tuple(position)]), rel=1e-8)
    assert not scores[~weight.mask].any()


@pytest.mark.parametrize("make", ["linear", "conv"])
@properties(15)
@given(seed=st.integers(0, 2**16), density=st.floats(0.1, 1))
def test_compensated_weights_are_the_constrained_least_squares(make, seed, density):
    layer, x = conv_and_inputs(seed)
    if make == "linear":
        layer, x = nn.Linear(9, 4).double(), x.reshape(-1, 9)
    weight = masked(layer, 0.8, seed)
    keep = weight.mask & (torch.rand(weight.mask.shape) < density)
    rows, old = input_rows(layer, x), weight_rows(weight, layer.weight.detach())
    new = weight_rows(
        weight, compensated_weights(ScoringContext(layer, [(x, None)]), {"weight": keep}, damping=0)["weight"]
    )
    kept = weight_rows(weight, keep)
    for group, neuron in torch.cartesian_prod(torch.arange(rows.shape[0]), torch.arange(old.shape[1])):
        columns = kept[group, neuron]
        target = rows[group] @ old[group, neuron]
        expected = torch.linalg.lstsq(rows[group][:, columns], target[:, None]).solution[:, 0]
        torch.testing.assert_close(new[group, neuron][columns], expected)
        assert not new[group, neuron][~columns].any()


def test_nothing_lost_changes_nothing():
    layer, x = conv_and_inputs(0)
    weight = masked(layer, 0.6)
    keep = weight.mask.clone()
    keep[0] = False
    new = compensated_weights(ScoringContext(layer, [(x, None)]), {"weight": keep})["weight"]
    assert not new[0].any()
    assert torch.equal(new[1:], layer.weight[1:])


def test_uncorrelated_inputs_rank_as_magnitude_does():
    layer = nn.Linear(4, 3).double()
    weight = masked(layer)
    x = 3 * torch.eye(4, dtype=torch.float64)  # H = 9/4 I
    scores = layerwise_obs(ScoringContext(layer, [(x, None)]), damping=0)["weight"]
    torch.testing.assert_close(scores, 9 / 8 * weight.weight.detach().square())


def test_inputs_that_never_vary_are_damped():
    layer = nn.Linear(4, 3)
    masked(layer)
    x = torch.tensor([[1.0, 2.0, 0.0, 2.0]])  # of rank 1, with a dead input
    scores = layerwise_obs(ScoringContext(layer, [(x, None)]))["weight"]
    assert scores.isfinite().all()
    dead = 0.5 * 1e-5 * 9 / 4 * layer.weight[:, 2].detach().double().square()
    torch.testing.assert_close(scores[:, 2], dead)
    silent = layerwise_obs(ScoringContext(layer, [(torch.zeros(2, 4), None)]))["weight"]
    assert silent.isfinite().all()


def test_a_layer_called_twice_counts_both_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.layer(F.relu(x))

    model = mask_layers(Twice(), density=1).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    alone = mask_layers(nn.Linear(2, 2, bias=False), density=1).double()
    alone.weight.data = model.layer.weight.data
    both = layerwise_obs(ScoringContext(alone, [(torch.cat([x, F.relu(x)]), None)]))["weight"]
    torch.testing.assert_close(layerwise_obs(ScoringContext(model, [(x, None)]))["layer"], both)


def test_what_it_cannot_read_is_named():
    transposed = mask_layers(nn.Sequential(nn.ConvTranspose1d(2, 3, 2)), density=1)
    with pytest.raises(ArgumentError, match="layer '0' is a MaskedConvTranspose1d; this score knows"):
        layerwise_obs(ScoringContext(transposed, [(torch.ones(1, 2, 3), None)]))

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 2))

    bare = Bare()
    attach_mask(bare, "matrix", torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="layer 'matrix' is a Bare; this score knows Linear and Conv"):
        layerwise_obs(ScoringContext(bare, [(torch.ones(1, 2), None)]))


def test_a_layer_that_is_not_called_is_named():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = mask_layers(Idle())
    with pytest.raises(ArgumentError, match="layer 'idle' is not called by the model; keep it dense"):
        layerwise_obs(ScoringContext(model, [(torch.ones(1, 2), None)]))
