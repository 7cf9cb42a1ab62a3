"""SNIP against explicit gates, SynFlow's conservation."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers import mask_layers
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from sparsefx.masking.masks import masked_weights
from sparsefx.pruning.prune import prune
from sparsefx.scores import ScoringContext, snip, synflow


def net(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7, bias=bias), nn.Tanh(), nn.Linear(7, 4, bias=bias)]
    return mask_layers(nn.Sequential(*layers), density=0.7).double()


def data(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 5, dtype=torch.float64), torch.arange(count) % 4


def test_snip_is_the_gradient_by_a_gate_on_each_weight():
    model, (x, y) = net(), data()
    weights = {f"{i}.weight": model[i].weight.detach() for i in (0, 2)}
    gates = {name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()}
    gated = {name: gates[name] * weight for name, weight in weights.items()}
    F.cross_entropy(functional_call(model, gated, (x,)), y).backward()
    scores = snip(ScoringContext(model, [(x, y)]))
    for name, gate in gates.items():
        torch.testing.assert_close(scores[name.removesuffix(".weight")], gate.grad.abs())


def test_snip_averages_over_batches_of_any_size():
    model, (x, y) = net(), data()
    whole = snip(ScoringContext(model, [(x, y)]))
    parts = snip(ScoringContext(model, [(x[:1], y[:1]), (x[1:], y[1:])]))
    for name, score in whole.items():
        torch.testing.assert_close(parts[name], score)


@properties(15)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**16))
def test_scaling_the_loss_scales_snip_and_changes_no_ranking(scale, seed):
    torch.manual_seed(seed)
    model, (x, y) = net(), data()
    plain = snip(ScoringContext(model, [(x, y)]))
    scaled = snip(
        ScoringContext(model, [(x, y)], loss=lambda out, target: scale * F.cross_entropy(out, target))
    )
    for name, score in plain.items():
        torch.testing.assert_close(scaled[name], scale * score)


def test_snip_reads_batch_norm_as_asked():
    torch.manual_seed(0)
    model = mask_layers(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), density=1).double()
    x, y = data()
    running, batch = (snip(ScoringContext(model, [(x, y)]), training=mode)["0"] for mode in (False, True))
    plain = snip(
        ScoringContext(model[:1], [(x, y)], loss=lambda o, t: F.cross_entropy(o / (1 + 1e-5) ** 0.5, t))
    )["0"]
    torch.testing.assert_close(running, plain)
    assert not torch.allclose(batch, running)


def test_synflow_by_hand():
    model = mask_layers(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)), density=1)
    model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    model[1].weight.data = torch.tensor([[-5.0, 6.0]])
    scores = synflow(ScoringContext(model, [(torch.zeros(7, 2), None)]))
    assert scores["0"].tolist() == [[5, 10], [18, 24]]  # |w| times the |weight| that reads it
    assert scores["1"].tolist() == [[15, 42]]  # |w| times the sum of |weights| into it


@properties(25)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=6), st.floats(0.3, 1), st.integers(0, 2**16))
def test_synflow_conserves_the_flow_through_every_hidden_unit(widths, density, seed):
    torch.manual_seed(seed)
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o, bias=False), nn.ReLU())]
    model = mask_layers(nn.Sequential(*layers), density, seed)
    scores = list(synflow(ScoringContext(model, [(torch.ones(1, widths[0]), None)])).values())
    for before, after in pairwise(scores):
        torch.testing.assert_close(before.sum(dim=1), after.sum(dim=0))


def test_synflow_conserves_the_flow_through_channels():
    torch.manual_seed(0)
    model = mask_layers(
        nn.Sequential(
            nn.Conv2d(2, 5, 3, bias=False),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(20, 3, bias=False),
        ),
        density=0.8,
    )
    first, second = synflow(ScoringContext(model, [(torch.ones(1, 2, 6, 6), None)])).values()
    torch.testing.assert_close(first.sum(dim=(1, 2, 3)), second.view(3, 5, 4).sum(dim=(0, 2)))


def test_synflow_leaves_a_path_where_one_round_of_snip_empties_layers():
    torch.manual_seed(0)
    widths = [30, 20, 10, 20, 10, 5]
    batches = [(torch.randn(40, 30), torch.arange(40) % 5)]

    def made() -> nn.Module:
        layers = [nn.Linear(i, o, bias=False) for i, o in pairwise(widths)]
        return mask_layers(nn.Sequential(*layers), density=1)

    size = sum(layer.mask.numel() for layer in masked_weights(made()))
    kept = prune(made(), 5 / size, score="synflow", rounds=100, batches=batches)
    assert kept == dict.fromkeys(("0", "1", "2", "3", "4"), 1)  # maximal sparsity
    with pytest.warns(UserWarning, match="pruning left no weight in"):
        prune(made(), 5 / size, score=partial(snip, training=True), batches=batches)


def test_synflow_stays_finite_where_float32_would_not():
    torch.manual_seed(0)
    model = mask_layers(nn.Sequential(*(nn.Linear(20, 20) for _ in range(30))), density=1)
    for layer in masked_weights(model):
        layer.weight.data.mul_(100)
    model.double()
    scores = synflow(ScoringContext(model, [(torch.ones(1, 20), None)]))
    assert all(score.isfinite().all() for score in scores.values())
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max
