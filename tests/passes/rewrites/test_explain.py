"""What the report says of empty channels that stay."""

import pytest
import torch
from torch import nn

import sparsefx
from sparsefx.errors import ArgumentError

torch.manual_seed(0)


def emptied(layer, rows=(), columns=()):
    layer.weight.data[list(rows)] = 0
    layer.weight.data[:, list(columns)] = 0
    return layer


class Residual(nn.Module):
    def __init__(self, activation=torch.relu):
        super().__init__()
        self.activation = activation
        self.first = nn.Linear(4, 6)
        self.second = emptied(nn.Linear(6, 6, bias=False), rows=[0, 1, 2])
        self.last = emptied(nn.Linear(6, 3), rows=[1])

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.activation(self.second(x)))


def kept(model, *inputs, **options):
    report = sparsefx.export(model, inputs, gather="never", **options).report
    return report, {(one.layer, one.side): (one.count, one.reason) for one in report.kept}


def test_a_residual_stream_and_an_output():
    report, found = kept(Residual(), torch.randn(2, 4))
    assert found == {
        ("second", "output"): (3, "add at add reads them"),
        ("last", "output"): (1, "the model returns them"),
    }
    assert report.why("second") == "second has 3 of 6 output channels empty: add at add reads them"
    assert report.why("first") == "first has no empty channels"
    assert "explain: 4 empty channels are left" in str(report)
    with pytest.raises(ArgumentError, match="thrid"):
        report.why("thrid")


def test_a_scattered_layer_has_nothing_left_to_explain():
    report = sparsefx.export(Residual(lambda x: x), (torch.randn(2, 4),), gather="always").report
    assert [(one.layer, one.side) for one in report.kept] == [("last", "output")]


def test_a_norm_a_size_and_a_depthwise_convolution():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = emptied(nn.Conv2d(3, 8, 1), rows=[0, 1])
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.mix = emptied(nn.Conv2d(8, 8, 1), rows=[4, 5, 6])
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.mix(torch.relu(self.depthwise(self.stem(x))))
            return self.head(self.norm(x.permute(0, 2, 3, 1)))

    _, found = kept(Net(), torch.randn(2, 3, 6, 6), fold_batchnorm=False)
    assert ("stem", "output") not in found  # through the depthwise convolution it went
    assert found["mix", "output"] == (3, "native_layer_norm at norm reads them")


def test_the_last_channel_and_parts_of_what_stays_python():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), emptied(nn.Linear(5, 3), rows=[0, 1]))
            self.hidden = nn.Sequential(emptied(nn.Linear(3, 4), rows=range(4)), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x):
            x = self.body(x)
            return self.hidden(x) if float(x.sum()) > -1e9 else x

    with pytest.warns(UserWarning, match="stays Python"):
        report = sparsefx.export(Branching(), (torch.randn(2, 4),)).report
    assert report.why("body.2") == "body.2 has 2 of 3 output channels empty: the model returns them"
    assert report.why("hidden.0").splitlines() == [
        "hidden.0 has 1 of 1 output channels empty: a layer has at least one channel",
        "hidden.0 has 3 of 3 input channels empty: the model takes or returns them",
    ]


def test_a_layer_that_is_not_cut():
    net = nn.Sequential(emptied(nn.Linear(4, 6), rows=[0, 1]), nn.ReLU(), nn.Linear(6, 2))
    net[0].register_forward_hook(lambda *_: None)
    report = sparsefx.export(net, (torch.randn(2, 4),)).report
    assert report.why("0").startswith("0 has 2 of 6 output channels empty: it has a hook")
