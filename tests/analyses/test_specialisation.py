"""Class specialisation: made activations whose answer is known, and what the networks are written like."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.analyses.comparison import compare
from sparsefx.analyses.specialisation import Specialisation, class_specialisation
from sparsefx.errors import ArgumentError

Batches = list[tuple[Tensor, Tensor]]


def relu_of(channels: int) -> nn.Module:
    """A model whose only activation is its input's ReLU."""
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(channels).view(channels, channels, 1, 1))
    return nn.Sequential(conv, nn.ReLU())


def measure(
    maps: Tensor, labels: list[int], classes: int, weak: float = 0.0, **options: bool
) -> Specialisation:
    """The specialisation of given activation maps (N, C, H, W), all at least 0."""
    batches = [(maps, torch.tensor(labels))]
    return class_specialisation(relu_of(maps.shape[1]), batches, classes, weak=weak, **options)


def test_a_channel_for_one_class_alone() -> None:
    maps = torch.zeros(3, 3, 2, 2)
    for sample in range(3):
        maps[sample, sample, 0, 1] = 0.3 * (sample + 1)
    (layer,) = measure(maps, [0, 1, 2], 3).layers
    assert layer.values.tolist() == [1, 1, 1]


def test_a_channel_for_all_classes_alike() -> None:
    (layer,) = measure(torch.full((5, 2, 3, 3), 0.7), [4, 3, 2, 1, 0], 5).layers
    assert layer.values.tolist() == pytest.approx([0.2, 0.2])


def test_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]], [[[2.0, 8.0]]]])  # sums 3, 3, 10
    assert measure(maps, [0, 0, 1], 2).layers[0].values.tolist() == pytest.approx([10 / 16])
    assert measure(maps, [0, 1, 1], 2).layers[0].values.tolist() == pytest.approx([13 / 16])
    assert measure(maps, [0, 1, 1], 2, balance=True).layers[0].values.tolist() == pytest.approx([6.5 / 9.5])


@properties(25)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_scaling_a_channel_changes_nothing(seed: int, scale: float) -> None:
    maps = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    labels = [0, 1, 2, 0, 1, 2]
    plain = measure(maps, labels, 3).layers[0].values
    maps[:, 1] *= scale
    assert torch.allclose(measure(maps, labels, 3).layers[0].values, plain, rtol=1e-5)
    assert 1 / 3 <= float(plain.min()) <= float(plain.max()) <= 1


def test_dead_channels_do_not_count() -> None:
    maps = torch.ones(2, 3, 2, 2)
    maps[:, 1] = 0
    (layer,) = measure(maps, [0, 1], 2).layers
    assert (layer.channels, layer.kept.tolist()) == (3, [0, 2])
    assert layer.values.tolist() == [0.5, 0.5]


def test_weak_channels_are_dropped_by_their_cumulative_share() -> None:
    maps = torch.tensor([2.0, 50.0, 1.5, 46.5]).view(1, 4, 1, 1)  # of 100: 1.5, 3.5, 50, 100 cumulated
    assert measure(maps, [0], 1, weak=0.05).layers[0].kept.tolist() == [1, 3]
    assert measure(maps, [0], 1, weak=0.03).layers[0].kept.tolist() == [0, 1, 3]
    assert measure(maps, [0], 1, weak=0.0).layers[0].kept.tolist() == [0, 1, 2, 3]


def test_a_layer_without_activity() -> None:
    found = measure(torch.zeros(2, 3, 2, 2), [0, 1], 2)
    assert len(found.layers[0].values) == 0
    assert math.isnan(found.layers[0].mean)
    assert found.as_dict()["mean"] is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_batches_add_up() -> None:
    maps, labels = torch.rand(7, 3, 2, 2), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    whole = class_specialisation(relu_of(3), [(maps, labels)], 3)
    parts = class_specialisation(relu_of(3), [(maps[:2], labels[:2]), (maps[2:], labels[2:])], 3)
    assert torch.allclose(whole.layers[0].values, parts.layers[0].values)


def test_plain_data_and_table() -> None:
    maps = torch.tensor([[1.0, 3.0, 1.0], [1.0, 1.0, 0.0]]).view(2, 3, 1, 1)  # values 0.5, 0.75, 1
    found = measure(maps, [0, 1], 2)
    assert found.as_dict(bins=2) == {
        "classes": 2,
        "mean": pytest.approx(0.75),
        "edges": pytest.approx([0.5, 0.75, 1.0]),
        "layers": [{"name": "0", "channels": 3, "kept": 3, "mean": pytest.approx(0.75), "counts": [1, 2]}],
    }
    assert str(found).splitlines()[2].split() == ["0", "3", "3", "0.7500"]


def test_every_channel_is_in_a_bin() -> None:
    for classes in (3, 7, 10):
        found = measure(torch.ones(classes, 4, 1, 1), list(range(classes)), classes)
        assert found.as_dict()["layers"][0]["counts"][0] == 4


class Written(nn.Module):
    """ReLU as function, method, module and in place, one of them twice after one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.dropout(x, 0.5, self.training)
        x = F.relu(self.second(x).relu_() - 0.1)
        x = self.relu(self.norm(self.third(x.mean((2, 3)))))
        return self.out(x)


def random_batches(classes: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 6, 6, generator=generator)
    return [(x, torch.randint(classes, (8,), generator=generator))] * 2


def test_every_relu_is_found_and_named_by_its_layer() -> None:
    torch.manual_seed(0)
    found = class_specialisation(Written(), random_batches(), 3)
    assert [layer.name for layer in found.layers] == ["first", "second", "second, 2", "third"]
    assert [layer.channels for layer in found.layers] == [4, 4, 4, 6]


@pytest.mark.parametrize("trace", [True, False])
def test_a_sparse_model_gives_what_its_plain_one_does(trace: bool) -> None:
    torch.manual_seed(0)
    model = Written()
    sparse = sparsefx.sparsify(model, density=1.0, trace=trace)
    expected, found = (class_specialisation(each, random_batches(), 3) for each in (model, sparse))
    assert [layer.name for layer in found.layers] == [layer.name for layer in expected.layers]
    for one, other in zip(expected.layers, found.layers, strict=True):
        assert torch.equal(one.values, other.values)


def test_what_convolutions_read() -> None:
    torch.manual_seed(0)
    model = Written()
    (layer,) = class_specialisation(model, random_batches(), 3, where="convolution inputs").layers
    relu = class_specialisation(model, random_batches(), 3).layers[0]
    assert layer.name == "second"
    assert torch.equal(layer.values, relu.values)


def test_the_model_stays_as_it_was() -> None:
    model = Written().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    class_specialisation(model, random_batches(), 3)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ArgumentError, match="batches has labels from 0 to 2, but classes=2"):
        class_specialisation(model, random_batches(), 2)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_arguments_that_cannot_be_used() -> None:
    with pytest.raises(ArgumentError, match="where='relu' is neither 'relu outputs' nor"):
        class_specialisation(Written(), random_batches(), 3, where="relu")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"weak=1.0 is not in \[0, 1\)"):
        class_specialisation(Written(), random_batches(), 3, weak=1.0)
    with pytest.raises(ArgumentError, match="where='relu outputs' found no activation map in Conv2d"):
        class_specialisation(nn.Conv2d(1, 2, 3), random_batches(), 3)


def test_two_networks_compared() -> None:
    maps = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).view(2, 2, 1, 1)
    one = measure(maps, [0, 1], 2)  # 0.5, 0.75
    other = measure(maps.flip(0) ** 2, [0, 1], 2)  # 0.5, 0.9
    (layer,) = compare(one, other).layers
    assert (layer.mean, layer.other) == (pytest.approx(0.625), pytest.approx(0.7))
    assert layer.distance == 0.5
    assert compare(one, one).layers[0].distance == 0
    assert compare(one, other).anova is None


def test_the_variance_of_two_networks_is_analysed_by_layer_and_network() -> None:
    torch.manual_seed(0)
    one, other = (class_specialisation(Written(), random_batches(), 3, weak=0.0) for _ in range(2))
    found = compare(one, other)
    assert found.anova is not None
    assert found.anova.first.degrees == len(found.layers) - 1
    assert found.anova.second.degrees == 1
    channels = sum(
        len(first.values) + len(second.values) for first, second in zip(one.layers, other.layers, strict=True)
    )
    assert found.anova.residual_degrees == channels - 2 * len(found.layers)
    assert str(found).splitlines()[-1].split()[0] == "residual"


def test_networks_that_cannot_be_compared() -> None:
    with pytest.raises(ArgumentError, match="compare networks of one architecture on the same data"):
        compare(measure(torch.ones(2, 1, 1, 1), [0, 1], 2), measure(torch.ones(2, 1, 1, 1), [0, 1], 3))
