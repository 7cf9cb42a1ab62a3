"""Averages of a sparse model's weights: masks are copied, whoever averages."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_same, masked_conv_net, total_active
from torch import Tensor, nn
from torch.optim import swa_utils

import sparsefx
from sparsefx.errors import ArgumentError, CheckpointError, InvariantError
from sparsefx.masking.averaged_model import average_by_masks
from sparsefx.masking.layers import mask_layer
from sparsefx.masking.masks import check_invariant

timm_ema = pytest.importorskip("timm.utils.model_ema")


def net(seed: int = 0) -> nn.Module:
    """With BatchNorm, whose buffers are of floating point and whole numbers."""
    model = masked_conv_net(seed=seed)
    model.insert(1, nn.BatchNorm2d(8))
    return model


def trained(average, steps: int = 4):
    """A model after some cycles, and what averaged it after each; the weights that were averaged."""
    model = net()
    follow, seen = average(model), []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=20)
    for step in range(steps):
        optimizer.zero_grad()
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.cycle()
        follow(model)
        seen.append([layer.weight.detach().clone() for layer in sparsefx.masked_weights(model)])
    return model, follow, seen


def masks(model: nn.Module) -> list[Tensor]:
    return [layer.mask.clone() for layer in sparsefx.masked_weights(model)]


def assert_averaged_by_masks(average: nn.Module, model: nn.Module) -> None:
    check_invariant(average)
    assert_same(masks(average), masks(model))
    assert total_active(average) == total_active(net())
    example = torch.randn(2, 3, 8, 8)
    compact = sparsefx.export(average, (example,))
    torch.testing.assert_close(compact(example), average.eval()(example))


ema = swa_utils.get_ema_multi_avg_fn(0.8)
FORMS = {
    "mean": {},
    "avg_fn": {"avg_fn": swa_utils.get_ema_avg_fn(0.8)},
    "multi_avg_fn": {"multi_avg_fn": ema},
    "swa_multi": {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()},
}


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_average_has_the_present_masks(form, use_buffers):
    class Follow:
        def __init__(self, model):
            self.average = sparsefx.AveragedModel(model, use_buffers=use_buffers, **FORMS[form])

        def __call__(self, model):
            self.average.update_parameters(model)
            check_invariant(self.average)

    model, follow, _ = trained(Follow)
    assert_averaged_by_masks(follow.average.module, model)
    norm, averaged = model[1], follow.average.module[1]
    assert averaged.num_batches_tracked == norm.num_batches_tracked
    assert torch.equal(averaged.running_mean, norm.running_mean) != use_buffers


@pytest.mark.parametrize("form", FORMS)
def test_where_no_mask_moves_it_is_torchs_average(form):
    model = net()
    ours, theirs = sparsefx.AveragedModel(model, **FORMS[form]), swa_utils.AveragedModel(model, **FORMS[form])
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.7)
        for average in (ours, theirs):
            average.update_parameters(model)
    assert_same(ours.state_dict(), theirs.state_dict())


def test_the_average_by_hand():
    """Decay 0.5, one weight that is pruned and one that grows in its place."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    mask_layer(model[0], torch.tensor([[True, False]]))
    average = sparsefx.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    (layer,) = sparsefx.masked_weights(model)
    for mask, values, expected in (
        ([True, False], [4.0, 0.0], [4.0, 0.0]),  # the first update copies
        ([True, False], [2.0, 0.0], [3.0, 0.0]),
        ([False, True], [0.0, 8.0], [0.0, 4.0]),
        ([True, False], [2.0, 0.0], [1.0, 0.0]),  # what it was before it was pruned is forgotten
    ):
        layer.set_mask(torch.tensor([mask]))
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([values]))
        average.update_parameters(model)
        assert average.module[0].weight.tolist() == [expected]


def test_an_average_that_another_library_made_is_turned_into_one():
    class Follow:
        def __init__(self, model):
            self.average = swa_utils.AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
            average_by_masks(self.average)

        def __call__(self, model):
            self.average.update_parameters(model)

    model, follow, _ = trained(Follow)
    assert_averaged_by_masks(follow.average.module, model)
    saved, average = copy.deepcopy(follow.average.state_dict()), sparsefx.AveragedModel(net())
    average.load_state_dict(saved)  # torch's keys
    assert_same(average.state_dict(), saved)


def test_compiled_and_wrapped_models_are_followed():
    model = net()
    average = sparsefx.AveragedModel(model)
    average.update_parameters(torch.compile(model, backend="eager"))
    assert_same(masks(average.module), masks(model))


class HandWritten:
    """An average of state dicts as is found in many scripts: what is not of floating point stays."""

    def __init__(self, model):
        self.module = copy.deepcopy(model)

    def __call__(self, model):
        for value, new in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if value.is_floating_point():
                value.lerp_(new, 0.2)


class Timm:
    """timm's, which average masks to their union (V2) or copy them and mix the weights (V3)."""

    def __init__(self, kind, model):
        self.average = kind(model, decay=0.8)
        self.module = self.average.module

    def __call__(self, model):
        self.average.update(model)


OTHERS = {
    "by hand": HandWritten,
    "V2": lambda model: Timm(timm_ema.ModelEmaV2, model),
    "V3": lambda model: Timm(timm_ema.ModelEmaV3, model),
    "torch": lambda model: TorchUnion(model),
}


class TorchUnion:
    def __init__(self, model):
        self.average = swa_utils.AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
        self.module = self.average.module

    def __call__(self, model):
        self.average.update_parameters(model)


@pytest.mark.parametrize("kind", OTHERS)
def test_masks_of_the_followed_model_mend_any_average(kind):
    model, follow, seen = trained(OTHERS[kind])
    expected = [layer.weight.detach() for layer in sparsefx.masked_weights(net())]
    for weights in seen:
        expected = [old.lerp(new, 0.2) for old, new in zip(expected, weights, strict=True)]
    if kind == "torch":  # its first update copies
        expected = seen[0]
        for weights in seen[1:]:
            expected = [old.lerp(new, 0.2) for old, new in zip(expected, weights, strict=True)]
    sparsefx.apply_masks(follow.module, like=model)
    assert_averaged_by_masks(follow.module, model)
    for layer, value in zip(sparsefx.masked_weights(follow.module), expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), value * layer.mask)


def test_another_model_is_no_copy():
    model, other = net(), nn.Sequential(*list(net())[:4])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=r"like: its masked weights are not those .* None instead of"):
        sparsefx.apply_masks(model, like=other)
    with pytest.raises(ArgumentError, match=r"\('6', \(5, 64\)\) instead of None"):
        sparsefx.apply_masks(other, like=model)
    assert_same(model.state_dict(), before)


def averaged_state(model: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """A merge of checkpoints that averages whatever it finds."""
    pairs = zip(model.state_dict().items(), other.state_dict().values(), strict=True)
    return {name: value * 0.8 + new * 0.2 for (name, value), new in pairs}


@pytest.mark.parametrize("assign", [False, True])
def test_a_mask_that_is_neither_0_nor_1_is_not_loaded(assign):
    model = net()
    state = averaged_state(net(seed=1), net(seed=2))
    with pytest.raises(
        CheckpointError, match=r"state_dict\['0\.mask'\] \(torch\.float32\) holds values that are neither"
    ):
        model.load_state_dict(state, assign=assign)
    without = {name: value for name, value in state.items() if not name.endswith("mask")}
    present = masks(model)
    model.load_state_dict(without)
    assert_same(masks(model), present)
    check_invariant(model)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_mask_of_0_and_1_in_another_type_is_loaded_as_bools(dtype, assign):
    model, other = net(), net(seed=1)
    state = {
        name: value.to(dtype) if name.endswith("mask") else value
        for name, value in other.state_dict().items()
    }
    model.load_state_dict(state, assign=assign)
    assert all(mask.dtype == torch.bool for mask in masks(model))
    assert_same(model.state_dict(), other.state_dict())


VERBS = {
    "export": lambda model: sparsefx.export(model, (torch.ones(1, 3, 8, 8),)),
    "report": sparsefx.report,
    "apply_masks": sparsefx.apply_masks,
    "SparseMomentum": lambda model: sparsefx.SparseMomentum(
        torch.optim.SGD(model.parameters(), lr=0.1), model, cycles=1
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_whose_masks_are_averages_is_refused(verb):
    model = net()
    model[0].mask = model[0].mask.float() * 0.2
    with pytest.raises(
        InvariantError, match=r"the mask of 0 .* neither 0 nor 1; masks are copied, not averaged"
    ):
        VERBS[verb](model)
    sparsefx.apply_masks(model, like=net())
    assert model[0].mask.dtype == torch.bool
    VERBS[verb](model)


def test_a_mask_of_float_zeros_and_ones_becomes_bools():
    model = net()
    model[0].mask = model[0].mask.float()
    optimizer = VERBS["SparseMomentum"](model)
    assert model[0].mask.dtype == torch.bool
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    check_invariant(model)
