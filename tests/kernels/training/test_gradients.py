"""A training step of accelerated networks equals the same in float64 by torch.

Where all numbers are small integers, float32 computes without rounding, and equality is exact: also where
ReLU meets 0 and several values of a window are the largest. With norms, networks are taken whose ReLUs and
windows are far from deciding otherwise.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import properties
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from training_networks import (
    Case,
    Mean,
    Network,
    Twins,
    cases,
    check_gradients,
    check_step,
    margin,
    regions,
    twins,
    whole_numbers,
)

from sparsefx.errors import ArgumentError
from sparsefx.kernels.codegen import vectors
from sparsefx.kernels.training.memory_pool import POOL, MemoryPool
from sparsefx.masking.packing import packings

NEAR = 1e-4
"""What is as near to 0 as this, beside the largest value, rounding may turn."""


@properties(400, quick=5)
@given(cases(exact=True))
def test_integers_give_the_same_bits(case: Case):
    torch.manual_seed(case.seed)
    x = whole_numbers(*case.shape)
    check_step(twins(case.network, x, case.density, case.seed), x)


@properties(300, quick=6)
@given(cases(exact=False), st.booleans())
def test_norms(case: Case, training: bool):
    torch.manual_seed(case.seed)
    x = torch.randn(case.shape)
    try:
        pair = twins(case.network, x, case.density, case.seed, integers=False)
    except ArgumentError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return
    pair.train(training)
    with margin() as found:
        copy.deepcopy(pair.exact)(x.double())
    assume(found.least > NEAR)
    check_step(pair, x, integers=False)


def network() -> nn.Module:
    """Two convolutions with groups and strides, a pool, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1, 1),
        nn.Conv2d(6, 6, 2, groups=6),
        nn.Flatten(),
        nn.Linear(6 * 9, 5),
    )


SHAPE = (9, 4, 6, 5)


@pytest.fixture
def pair() -> Twins:
    return twins(network(), whole_numbers(*SHAPE), 0.4, seed=0)


def both(pair: Twins, x: torch.Tensor, **options: bool) -> None:
    """A step of each without a gradient of the input."""
    pair.fast(x).sum().backward(**options)
    pair.exact(x.double()).sum().backward(**options)


@pytest.mark.parametrize("images", [0, 1, 7, 8, 16, 21])
def test_batches_of_any_size(pair: Twins, images: int):
    check_step(pair, whole_numbers(images, *SHAPE[1:]))


@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
def test_densities(density: float):
    x = whole_numbers(*SHAPE)
    check_step(twins(network(), x, density, seed=1), x)


@pytest.mark.parametrize(
    "activation",
    [
        *(nn.ReLU6(), nn.LeakyReLU(-0.5), nn.SiLU(), nn.Mish(), nn.ELU(), nn.Sigmoid(), nn.Tanh()),
        *(nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.Hardsigmoid()),
    ],
    ids=str,
)
def test_activations(activation: nn.Module):
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), activation, nn.MaxPool2d(2))
    after = nn.Sequential(nn.Conv2d(4, 4, 2), activation, nn.Flatten(), nn.Linear(16, 5), activation)
    x = 3 * torch.randn(9, 3, 6, 6)
    pair = twins(nn.Sequential(before, after), x, 0.7, seed=0, integers=False)
    assert len(regions(pair.fast)) == 1  # of both modes
    check_step(pair, x, integers=False)


class Dropouts(nn.Module):
    """Dropouts of elements and of channels, in and between layers; the two modes have other graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(9)
        self.channels, self.elements = nn.Dropout2d(0.3), nn.Dropout(0.5)
        self.second, self.last = nn.Conv2d(9, 4, 3, stride=2), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.first(x).relu(), x[:, :, 1:-1, 1:-1]], 1)
        y = self.second(self.channels(self.norm(y).relu()))
        return self.elements(self.last(nn.functional.dropout(y.flatten(1), 0.2, self.training)))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_what_torch_draws(training: bool):
    x = torch.randn(9, 3, 7, 7, requires_grad=True)
    pair = twins(Dropouts(), x, 0.5, seed=0, integers=False, whole=False)
    pair.exact.float()
    pair.train(training)
    found, states = [], []
    for model in (pair.fast, pair.exact):
        torch.manual_seed(3)
        output = model(x)
        found.append((output, *torch.autograd.grad(output.square().sum(), x)))
        states.append(torch.get_rng_state())
    torch.testing.assert_close(found[0], found[1])
    assert torch.equal(*states)


def test_a_dropout_that_is_switched_off_drops_nothing():
    network = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    x = whole_numbers(9, 4)
    pair = twins(network, x, 0.5, seed=0)
    for model in (pair.fast, pair.exact):
        model.get_submodule("1").eval()
    check_step(pair, x)


def test_bounds_by_clamp_stay_outside():
    """Its gradient passes where the value is the bound."""

    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).clamp(min=0))

    x = whole_numbers(9, 3)
    check_step(twins(Clamped(), x, 0.5, seed=0, whole=False), x)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.repeat_interleave(2, dim=0)[::2],
        lambda x: x[:1].expand(9, -1, -1, -1),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
        lambda x: x.to(memory_format=torch.channels_last)[1:],
    ],
)
@pytest.mark.parametrize("channels", [2, 17])
def test_any_strides(form, channels: int):
    x = whole_numbers(9, channels, 4, 3)
    pair = twins(nn.Sequential(nn.Conv2d(channels, channels, 2), nn.ReLU()), x, 0.4, seed=0)
    check_step(pair, form(x))


@pytest.mark.parametrize("shape", [(6,), (1, 6), (19, 6), (2, 3, 6), (0, 6), (0, 3, 6)])
def test_rows(shape: tuple[int, ...]):
    pair = twins(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), whole_numbers(3, 6), 0.5, seed=0)
    check_step(pair, whole_numbers(*shape))


def test_several_forward_passes_before_the_backward_passes(pair: Twins):
    inputs = [whole_numbers(images, *SHAPE[1:]) for images in (9, 9, 4)]
    for model, type_ in ((pair.fast, torch.float32), (pair.exact, torch.float64)):
        losses = [model(x.to(type_)).sum() * weight for weight, x in enumerate(inputs, 1)]
        for loss in losses:
            loss.backward()
    check_gradients(pair)


def test_two_backward_passes(pair: Twins):
    x = whole_numbers(*SHAPE)
    for model, type_ in ((pair.fast, torch.float32), (pair.exact, torch.float64)):
        loss = model(x.to(type_)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="a second time"):
            loss.backward()
    check_gradients(pair)


def test_double_backward_is_refused(pair: Twins):
    x = whole_numbers(*SHAPE).requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(pair.fast(x).sum(), x, create_graph=True)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_forward_mode_is_refused(pair: Twins):
    x = whole_numbers(*SHAPE)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivatives"):
        pair.fast(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("frozen", ["0.weight", "3.weight", "5.weight", "0.bias", "3.bias", "5.bias"])
def test_frozen_parameters(pair: Twins, frozen: str):
    for model in (pair.fast, pair.exact):
        model.get_parameter(frozen).requires_grad_(False)
    check_step(pair, whole_numbers(*SHAPE))
    assert pair.fast.get_parameter(frozen).grad is None


def test_all_frozen_but_the_input(pair: Twins):
    for model in (pair.fast, pair.exact):
        model.requires_grad_(False)
    check_step(pair, whole_numbers(*SHAPE))


def test_an_input_without_a_gradient(pair: Twins):
    both(pair, whole_numbers(*SHAPE))
    check_gradients(pair)


def test_frozen_norms():
    x = torch.randn(7, 3, 4, 4)
    norms = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))
    pair = twins(norms, x, 0.5, seed=0, integers=False)
    for model in (pair.fast, pair.exact):
        model.get_submodule("1").eval()  # by its running statistics while the rest trains
        model.get_submodule("3").requires_grad_(False)
    check_step(pair, x, integers=False)


def test_a_norm_in_evaluation_takes_one_value():
    norms = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )
    pair = twins(norms, torch.randn(7, 3, 2, 2), 0.7, seed=0, integers=False)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        pair.fast(torch.randn(1, 3, 2, 2))
    for model in (pair.fast, pair.exact):
        model.get_submodule("4").eval()
    check_step(pair, torch.randn(1, 3, 2, 2), integers=False)


def test_running_statistics_over_several_batches():
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None))
    pair = twins(norm, torch.randn(7, 3, 4, 4), 0.5, seed=0, integers=False)
    for images in (7, 9, 2):
        check_step(pair, torch.randn(images, 3, 4, 4), integers=False)
    pair.train(False)
    check_step(pair, torch.randn(3, 3, 4, 4), integers=False)


def test_large_means_keep_the_digits_of_the_variance():
    norm = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    x = 1000 + torch.randn(16, 2, 8, 8)
    pair = twins(norm, x, 1.0, seed=0, integers=False)
    actual, expected = pair.fast(x), pair.exact(x.double())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=5e-3)


def test_without_gradients(pair: Twins):
    x = whole_numbers(*SHAPE)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            output = pair.fast(x)
        assert not output.requires_grad
        assert torch.equal(output.double(), pair.exact(x.double()))


def test_weights_that_are_held_dense_get_gradients_of_all_positions(pair: Twins):
    for packing in packings(pair.fast):
        packing.hold("test")
    x = whole_numbers(*SHAPE)
    check_step(pair, x)
    assert pair.fast.get_parameter("0.weight").grad.shape == (6, 2, 3, 3)
    for packing in packings(pair.fast):
        packing.hold("test", held=False)
    for model in (pair.fast, pair.exact):
        model.zero_grad()
    check_step(pair, x)
    assert pair.fast.get_parameter("0.weight").grad.dim() == 1


def test_a_mask_that_changes(pair: Twins):
    x = whole_numbers(*SHAPE)
    check_step(pair, x)
    for packing in packings(pair.fast):
        packing.unpack()
    for model in (pair.fast, pair.exact):
        model.zero_grad()
        layer = model.get_submodule("3")
        with torch.no_grad():
            layer.mask.copy_(layer.mask.flip(0))
            layer.weight.copy_(layer.weight.flip(0))
    check_step(pair, x)


def test_dense_weights_between_forward_and_backward(pair: Twins):
    x = whole_numbers(*SHAPE)
    loss = pair.fast(x).sum()
    pair.fast.state_dict()
    loss.backward()
    pair.exact(x.double()).sum().backward()
    check_gradients(pair)


def test_another_mask_between_forward_and_backward_is_refused(pair: Twins):
    loss = pair.fast(whole_numbers(*SHAPE)).sum()
    (packing, *_) = packings(pair.fast)
    packing.hold("test")
    with pytest.raises(RuntimeError, match="between the forward and the backward pass"):
        loss.backward()


def test_weights_that_change_before_the_backward_pass_are_refused(pair: Twins):
    loss = pair.fast(whole_numbers(*SHAPE)).sum()
    with torch.no_grad():
        pair.fast.get_parameter("5.weight").add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_input_that_changes_before_the_backward_pass(pair: Twins):
    x = whole_numbers(*SHAPE)
    inputs = x.clone()
    loss = pair.fast(inputs).sum()
    inputs.zero_()
    loss.backward()
    pair.exact(x.double()).sum().backward()
    check_gradients(pair)


def test_checkpointing(pair: Twins):
    x = whole_numbers(*SHAPE)
    checkpoint(pair.fast, x, use_reentrant=False).sum().backward()
    pair.exact(x.double()).sum().backward()
    check_gradients(pair)


def test_a_layer_that_is_used_twice():
    layer, norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2, momentum=None)
    shared = Network([(layer, (0,)), (norm, (1,)), (layer, (2,)), (norm, (3,)), (Mean(2), (4,))], [5])
    x = torch.randn(9, 2, 4, 4)
    check_step(twins(shared, x, 0.6, seed=0, integers=False), x, integers=False)


def test_threads_compute_the_same(pair: Twins):
    before = torch.get_num_threads()
    try:
        for number in (2, 3):
            torch.set_num_threads(number)
            check_step(pair, whole_numbers(*SHAPE))
    finally:
        torch.set_num_threads(before)


def test_memory_goes_back_after_the_backward_pass(pair: Twins, monkeypatch):
    x = whole_numbers(*SHAPE)
    lent = []
    give_back = MemoryPool.give_back
    monkeypatch.setattr(
        MemoryPool, "give_back", lambda pool, piece: (lent.append(piece.data_ptr()), give_back(pool, piece))
    )
    POOL._free.clear()
    loss = pair.fast(x).sum()
    forward = len(lent)
    loss.backward(retain_graph=True)
    assert len(lent) == forward + 1  # what the backward pass itself took
    loss.backward()
    assert len(lent) == forward + 3
    pair.fast(x)
    assert len(set(lent)) < len(lent)  # the same memory again


def test_copies_share_nothing(pair: Twins):
    x = whole_numbers(*SHAPE)
    check_step(pair, x)
    copied = copy.deepcopy(pair)
    for model in (copied.fast, copied.exact):
        model.zero_grad()
        with torch.no_grad():
            model.get_parameter("3.bias").add_(1)
    check_step(copied, x)
    before = dict(pair.fast.named_parameters())
    assert all(parameter is not before[name] for name, parameter in copied.fast.named_parameters())
    assert len(regions(copied.fast)) == 1


@pytest.mark.slow
def test_the_other_width_of_vectors():
    other = {8: "16", 16: "8"}[vectors.LANES]
    names = "integers_give or test_norms or any_strides or held_dense"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        names,
    ]
    environment = {**os.environ, "SPARSEFX_LANES": other}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
