"""The fraction ever active: its bounds, its order, and its state."""

from __future__ import annotations

import io

import pytest
import torch
from helpers import masked_conv_net, masked_mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparsefx
from sparsefx.analyses.explored import Explored
from sparsefx.errors import ArgumentError, CheckpointError
from sparsefx.masks import masked_weights


def shuffle_masks(model: nn.Module, seed: int) -> None:
    """Move every layer's active positions, conserving their number."""
    generator = torch.Generator().manual_seed(seed)
    for masked in masked_weights(model):
        order = torch.randperm(masked.mask.numel(), generator=generator)
        masked.set_mask(masked.mask.flatten()[order].view(masked.mask.shape))


def density(model: nn.Module) -> float:
    masks = [masked.mask for masked in masked_weights(model)]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@given(st.lists(st.integers(0, 1000), max_size=6), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(deadline=None, max_examples=25)
def test_it_never_falls_and_stays_between_the_density_and_one(seeds: list[int], share: float) -> None:
    model = masked_mlp(6, 5, 3, density=share)
    explored = Explored(model)
    fractions = [explored.fraction]
    for seed in seeds:
        shuffle_masks(model, seed)
        fractions.append(explored.update())
    assert fractions == sorted(fractions)
    assert fractions[0] == pytest.approx(density(model))
    assert density(model) <= fractions[-1] <= 1


def test_by_hand() -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), 0.5)
    first, second = masked_weights(model)
    first.set_mask(torch.tensor([[True, False], [False, False]]))
    second.set_mask(torch.tensor([[True, False]]))
    explored = Explored(model)
    first.set_mask(torch.tensor([[False, True], [False, False]]))
    assert explored.fraction == 2 / 6
    assert explored.update() == 3 / 6
    assert explored.fractions == {"0": 0.5, "1": 0.5}
    first.set_mask(torch.tensor([[True, False], [False, False]]))
    assert explored.update() == 3 / 6


def test_a_mask_changed_in_place_is_not_seen_before_update() -> None:
    model = masked_mlp(4, 4, density=0.25)
    explored = Explored(model)
    masked_weights(model)[0].mask.fill_(True)
    assert explored.fraction == 0.25
    assert explored.update() == 1


def test_the_state_comes_back() -> None:
    model = masked_conv_net()
    explored = Explored(model)
    shuffle_masks(model, 1)
    explored.update()
    file = io.BytesIO()
    torch.save(explored.state_dict(), file)
    file.seek(0)
    fresh = Explored(masked_conv_net(density=0.0))
    assert fresh.fraction == 0
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.fractions == explored.fractions
    state = explored.state_dict()
    state["0"].fill_(True)
    assert fresh.fractions == explored.fractions


def test_a_state_of_another_model() -> None:
    explored = Explored(masked_mlp(4, 4, density=0.25))
    for other in (masked_mlp(4, 5), masked_conv_net()):
        with pytest.raises(CheckpointError, match="state_dict is of other masked weights: 0"):
            explored.load_state_dict(Explored(other).state_dict())
    with pytest.raises(CheckpointError, match="other masked weights: 0 differ"):
        explored.load_state_dict({"0": [True]})
    assert explored.fraction == 0.25


def test_a_model_without_masks() -> None:
    with pytest.raises(
        ArgumentError, match=r"model has no masked weights; pass it through sparsefx.sparsify"
    ):
        Explored(nn.Linear(2, 2))
