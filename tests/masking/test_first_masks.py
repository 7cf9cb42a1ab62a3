"""The masks that layers begin with: exact, a weight for each output, and a word where one has none."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, nn

import sparsefx
from sparsefx.masking.first_masks import number_of_outputs, random_mask

LAYERS = {
    "linear": nn.Linear(6, 5),
    "conv": nn.Conv2d(4, 6, 3),
    "depthwise": nn.Conv2d(6, 12, 3, groups=6),
    "transposed": nn.ConvTranspose2d(4, 6, 3),
    "transposed groups": nn.ConvTranspose1d(4, 6, 3, groups=2),
}


def _outputs_that_read(layer: nn.Module, mask: Tensor) -> int:
    """How many outputs change with the layer's input, found by running it."""
    weight = layer.get_parameter("weight")
    run = nn.functional.linear
    plain = type(layer)
    copied = plain.__new__(plain)
    copied.__dict__ = {**layer.__dict__, "_parameters": {"weight": nn.Parameter(mask.float()), "bias": None}}
    inputs = weight.shape[1] if isinstance(layer, nn.Linear) else layer.in_channels
    x = torch.ones(1, inputs, *[9] * (weight.dim() - 2))
    found = run(x, mask.float()) if isinstance(layer, nn.Linear) else copied(x)
    return int((found.flatten(2).amax(2) if found.dim() > 2 else found).count_nonzero())


@pytest.mark.parametrize("name", LAYERS)
@properties(50, quick=5)
@given(share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_every_output_gets_a_weight(name: str, share: float, seed: int) -> None:
    layer = LAYERS[name]
    shape = layer.weight.shape
    active = round(share**2 * shape.numel())
    mask = random_mask(shape, active, torch.Generator().manual_seed(seed), layer)
    outputs = number_of_outputs(layer, shape)
    assert outputs == getattr(layer, "out_channels", getattr(layer, "out_features", None))
    assert int(mask.sum()) == active
    assert _outputs_that_read(layer, mask) == min(active, outputs) or active > outputs
    if active >= outputs:
        assert _outputs_that_read(layer, mask) == outputs


def test_a_draw_that_leaves_no_output_empty_is_kept() -> None:
    layer = LAYERS["linear"]
    shape = layer.weight.shape
    pairs = [
        [random_mask(shape, 15, torch.Generator().manual_seed(seed), held) for held in (None, layer)]
        for seed in range(30)
    ]
    full = [bool(plain.any(1).all()) for plain, _ in pairs]
    assert any(full)
    assert not all(full)
    assert all(torch.equal(*pair) is kept for pair, kept in zip(pairs, full, strict=True))
    # what is moved is no more than the outputs need
    assert all(int((one & ~other).sum()) == int((~one.any(1)).sum()) for one, other in pairs)


def test_a_head_learns_at_a_density_that_rounds_to_no_weight() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 100)
    y = x[:, :20].sum(1, keepdim=True)
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(100, 16), nn.Tanh(), nn.Linear(16, 1)), 0.02)
    assert [int(layer.mask.sum()) for layer in sparsefx.masked_weights(model)] == [31, 1]
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=10, every=20)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * float(y.var())  # it stays at 1.0 without a weight in the head


def _empty_head(shapes: list[torch.Size], density: float) -> list[float]:
    return [0.5, 0.0]


def test_an_empty_layer_is_named_and_gets_weights_by_momentum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=r"sparsify: layers begin empty.*: 2 \(no weight\).*\"erk\""):
        model = sparsefx.sparsify(net, 0.5, distribution=_empty_head)
    optimizer = sparsefx.SparseMomentum(torch.optim.SGD(model.parameters(), 0.1, 0.9), model, cycles=9)
    (model(torch.randn(16, 8)) - 1).square().mean().backward()
    optimizer.step()
    optimizer.cycle()
    assert int(model.get_submodule("2").mask.sum()) > 0


def _few_for_depthwise(shapes: list[torch.Size], density: float) -> list[float]:
    return [0.5, 0.05]


def test_a_depthwise_layer_that_is_mostly_empty_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16))
    with pytest.warns(UserWarning, match=r"layers begin empty.*: 1 \(5[0-9]% of its channels\)"):
        sparsefx.sparsify(net, 0.5, distribution=_few_for_depthwise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse = sparsefx.sparsify(net, 0.17)
    assert bool(sparse.get_submodule("1").mask.flatten(1).any(1).all())


def test_the_density_of_a_depthwise_layer_too_low_for_its_channels_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=32))
    with pytest.warns(UserWarning, match=r"1 \(\d+% of its channels\)"):
        sparsefx.sparsify(net, 0.04)
