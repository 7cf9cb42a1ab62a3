"""Export: the same function, everything removable removed, clear errors."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import NETWORKS, PATTERNS, build, empty, names, randomize_norms, relative_difference, vgg
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune

import sparsefx
from sparsefx import ArgumentError, ExportReport, InvariantError, MaskedLinear

QUICK = (
    "mlp",
    "lenet5",
    "alexnet",
    "residual",
    "bottlenecks",
    "dense_net",
    "mobile_net",
    "inception",
    "shuffle_net",
)
"""Chains of convolutions are AlexNet's too, residual sums ResNet's, concatenations those of the last ones."""


def _cases() -> Iterator[Any]:
    """Every network with every pattern; the quick run takes one pattern of each network, in turn."""
    for number, name in enumerate(names(QUICK)):
        for turn, pattern in enumerate(PATTERNS):
            marks = name.marks if turn == number % len(PATTERNS) else pytest.mark.slow
            yield pytest.param(*name.values, pattern, marks=marks)


@pytest.mark.parametrize(("name", "pattern"), list(_cases()))
def test_export_computes_the_same_function(name: str, pattern: str) -> None:
    sizes = NETWORKS[name][1]
    model = build(name, pattern)
    before = copy.deepcopy(model.state_dict())
    compact = sparsefx.export(model, (torch.randn(2, 3, sizes[0], sizes[0], dtype=torch.float64),))
    compact.graph.lint()
    for batch, size in [(1, sizes[0]), (3, sizes[-1])]:
        x = torch.randn(batch, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            assert relative_difference(compact(x), model(x)) <= 1e-11
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert count(compact) < count(model)


@pytest.mark.parametrize(
    "name", ["residual", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16_bn", "mobile_net"))]
)
def test_float32_stays_within_rounding(name: str) -> None:
    model = build(name, "both").float()
    x = torch.randn(4, 3, 32, 32)
    compact = sparsefx.export(model, (x,))
    with torch.no_grad():
        assert relative_difference(compact(x), model(x)) <= 1e-5


def test_torchs_own_pruning_becomes_permanent() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    prune.ln_structured(model[0], "weight", amount=0.5, n=2, dim=0)
    prune.random_unstructured(model[4], "weight", amount=0.5)
    prune.random_unstructured(model[0], "bias", amount=0.9)
    model, x = model.double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    torch.testing.assert_close(compact(x), model(x), rtol=1e-12, atol=1e-12)
    assert compact.get_submodule("0").out_channels < 8
    assert prune.is_pruned(model)  # the caller's model is as before


def test_vgg_is_as_small_as_one_built_by_hand() -> None:
    """Rows emptied: what survives is each layer's living rows, and one carrier where a dead one varies."""
    torch.manual_seed(0)
    model = vgg(batch_norm=True).double().eval()
    randomize_norms(model)
    empty(model, "rows")
    convs = [module for module in model if isinstance(module, nn.Conv2d)]
    compact = sparsefx.export(model, (torch.randn(1, 3, 32, 32, dtype=torch.float64),))
    living = [int(conv.weight.flatten(1).any(1).sum()) for conv in convs]
    kept = [module.out_channels for module in compact.modules() if isinstance(module, nn.Conv2d)]
    # all but the last convolution feed a zero-padded one, which may need one carrier
    assert all(0 <= k - alive <= 1 for k, alive in zip(kept[:-1], living[:-1], strict=True))
    assert kept[-1] == living[-1]
    assert count(compact) <= count(by_hand(kept, compact))


def by_hand(widths: list[int], compact: nn.Module) -> nn.Module:
    """VGG with the surviving widths, BatchNorm folded, as one would write it down."""
    hidden = next(module for module in compact.modules() if isinstance(module, nn.Linear)).out_features
    channels, layers = 3, list[nn.Module]()
    for width in widths:
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels * 4, hidden), nn.Linear(hidden, 10))


def test_a_stream_dead_for_all_its_writers_is_removed() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = x + self.one(F.relu(x))
            x += self.two(x)
            return self.head(x)

    torch.manual_seed(0)
    model = Residual().double()
    for layer in (model.stem, model.one, model.two):
        layer.weight.data[:3] = 0
    model.one.weight.data[:5] = 0  # rows 3 and 4 still flow through the stem
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    compact = sparsefx.export(model, (x,), gather="never")  # a scatter that is timed faster keeps the carrier
    widths = [compact.get_submodule(name).out_channels for name in ("stem", "one", "two")]
    assert widths[0] == widths[1] == widths[2] <= 6  # five living channels and at most a carrier
    x = torch.randn(2, 3, 11, 7, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_depthwise_follows_its_input_and_groups_go_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 16, 3, groups=8),  # depth multiplier 2
        nn.Conv2d(16, 16, 1, groups=4),
        nn.Conv2d(16, 5, 1),
    ).double()
    model[3].weight.data[:, :4] = 0  # the first of four groups is not read
    compact = sparsefx.export(model, (torch.randn(1, 3, 6, 6, dtype=torch.float64),))
    shapes = [tuple(compact.get_submodule(str(i)).weight.shape) for i in range(4)]
    assert shapes == [(6, 3, 1, 1), (12, 1, 3, 3), (12, 4, 1, 1), (5, 12, 1, 1)]
    assert [compact.get_submodule(str(i)).groups for i in (1, 2)] == [6, 3]
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


@pytest.mark.parametrize("transposed", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(transposed: type[_ConvNd], groups: int) -> None:
    torch.manual_seed(0)
    rank = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}[transposed]
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](3, 8, 3)
    last = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](12, 4, 1)
    middle = transposed(8, 12, 3, stride=2, padding=1, output_padding=1, groups=groups)
    model = nn.Sequential(first, nn.Sigmoid(), middle, nn.ReLU(), last).double()
    first.weight.data[4:] = 0
    last.weight.data[:, 6:] = 0
    x = torch.randn(2, 3, *(7,) * rank, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert count(compact) < count(model)
    assert relative_difference(compact(x), model(x)) <= 1e-11


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_constant_into_padding(mode: str) -> None:
    """Zero padding needs a carrier, the other modes pad a constant with itself."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3, padding=1, padding_mode=mode)
    ).double()
    model[0].weight.data[:5] = 0
    compact = sparsefx.export(model, (torch.randn(1, 3, 9, 9, dtype=torch.float64),))
    # torch pads circularly by writing into slices, of which nothing is known: all eight stay
    assert compact.get_submodule("0").out_channels == {"zeros": 4, "circular": 8}.get(mode, 3)
    for size in (5, 14):
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_constant_behind_zero_padding_is_none() -> None:
    """What reads nothing but constants varies all the same, at the border, where it reads the zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).double()
    model[0].weight.data[:2] = 0
    model[1].weight.data[:2, 2:] = 0
    compact = sparsefx.export(model, (torch.randn(1, 3, 6, 6, dtype=torch.float64),))
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_functional_layers_tied_weights_and_repeated_calls() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(10, 6))
            self.b = nn.Parameter(torch.randn(10))
            self.k = nn.Parameter(torch.randn(8, 1, 3, 3))
            self.twice = nn.Linear(10, 10)
            self.tied = nn.Linear(10, 10)
            self.tied.weight = self.twice.weight
            self.out = nn.Linear(10, 3)
            self.conv = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(F.linear(x, self.w, self.b))
            h = F.relu(self.tied(F.relu(self.twice(F.relu(self.twice(h))))))
            return self.out(h), self.conv(F.conv2d(image, self.k, padding=1, groups=1))

    torch.manual_seed(0)
    model = Odd().double()
    with torch.no_grad():
        model.w[:4] = 0
        model.twice.weight[:4] = 0
        model.twice.weight[:, :4] = 0
        model.out.weight[:, :4] = 0
        model.k[:3] = 0
    inputs = (torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 1, 5, 5, dtype=torch.float64))
    compact = sparsefx.export(model, inputs)
    assert compact.get_submodule("twice").weight.shape == (6, 6)
    assert compact.get_submodule("twice").weight is compact.get_submodule("tied").weight
    assert compact.get_submodule("conv").in_channels == 5
    for actual, expected in zip(compact(*inputs), model(*inputs), strict=True):
        assert relative_difference(actual, expected) <= 1e-11


class _Blocked(nn.Module):
    """A network with one operation in its middle."""

    def __init__(self, operation: object, inputs: int = 8, outputs: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, inputs, 3, padding=1), nn.Conv2d(outputs, 4, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)))


def _chunked(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=1)
    return torch.cat([one * 2, other], dim=1)


def _hard_coded(x: Tensor) -> Tensor:
    return x.view(-1, 8, 6, 6)


def _shuffled(x: Tensor) -> Tensor:
    batch, channels, height, width = x.size()
    return (
        x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    )


def _scaled_by_width(x: Tensor) -> Tensor:
    return x / x.shape[1] ** 0.5


def _fourier(x: Tensor) -> Tensor:
    return torch.fft.fft(x, dim=1).real


def _sorted(x: Tensor) -> Tensor:
    return x.sort(1).values


def _in_place_on_a_view(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :4].mul_(3)
    return x


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


def _group_norm(x: Tensor) -> Tensor:
    return F.group_norm(x, 2)


def _instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x)


def _pixel_shuffle(x: Tensor) -> Tensor:
    return F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1)


def _windows(x: Tensor) -> Tensor:
    return x.unfold(2, 3, 1).mean(-1)


def _windows_of_channels(x: Tensor) -> Tensor:
    return x.unfold(1, 2, 1).amax(-1).repeat(1, 2, 1, 1)[:, :8]


def _mean_over_channels(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def _padded_channels(x: Tensor) -> Tensor:
    return F.pad(x[:, :6], (0, 0, 0, 0, 1, 1), value=0.5)


def _attended(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    weights = (tokens @ tokens.transpose(1, 2) / channels**0.5).softmax(-1)
    return (weights @ tokens).transpose(1, 2).reshape(batch, channels, height, width)


OPERATIONS = [
    _chunked, _hard_coded, _shuffled, _scaled_by_width, _fourier, _sorted, _in_place_on_a_view, _softmax,
    _layer_norm, _group_norm, _instance_norm, _pixel_shuffle, _mean_over_channels, _padded_channels,
    _attended, _windows, _windows_of_channels,
]  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("which", ["rows", "columns", "both"])
def test_never_wrong_on_any_operation(operation: object, which: str) -> None:
    torch.manual_seed(0)
    model = _Blocked(operation).double().eval()
    if which in ("rows", "both"):
        model.first.weight.data[2:5] = 0
    if which in ("columns", "both"):
        model.last.weight.data[:, 1:4] = 0
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    for batch in (1, 3):
        x = torch.randn(batch, 3, 6, 6, dtype=torch.float64)
        with torch.no_grad():
            assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_hard_coded_view_is_rewritten() -> None:
    torch.manual_seed(0)
    model = _Blocked(_hard_coded).double().eval()
    model.last.weight.data[:, 1:4] = 0
    compact = sparsefx.export(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    assert compact.get_submodule("first").out_channels == 5


def test_patches_are_cut() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).unfold(2, 2, 2).unfold(3, 2, 2)  # (N, 8, rows, columns, 2, 2)
            return self.last(x.permute(0, 2, 3, 1, 4, 5).flatten(3))

    torch.manual_seed(0)
    model = Patches().double().eval()
    model.last.weight.data.view(5, 8, 4)[:, [1, 4, 6]] = 0
    compact = sparsefx.export(model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),))
    assert compact.get_submodule("conv").out_channels == 5
    assert compact.get_submodule("last").in_features == 20
    for size in (4, 7, 10):
        x = torch.randn(1, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            assert relative_difference(compact(x), model(x)) <= 1e-11


def test_the_report_names_what_kept_channels() -> None:
    torch.manual_seed(0)
    model = _Blocked(_fourier).double().eval()
    model.last.weight.data[:, 1:4] = 0
    report = sparsefx.export(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),)).report
    assert "view_as_real at getattr_1 keeps 6 dead channels" in str(report)


def test_report_and_plain_result() -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 2)), 0.5)
    weight = model.get_submodule("0")
    weight.mask[:4] = False
    sparsefx.apply_masks(model)
    compact = sparsefx.export(model.train(), (torch.randn(5, 6),))
    assert not compact.training
    assert model.training
    assert not any("mask" in key for key in compact.state_dict())
    assert type(compact.get_submodule("0")) is nn.Linear
    assert isinstance(compact.report, ExportReport)
    assert compact.report.channels_before == 11
    assert compact.report.channels_after == compact.get_submodule("0").out_features + 2
    assert [step.name for step in compact.report.passes] == [
        "functionalize", "remove_identities", "constant_folding", "functional_to_modules",
        "decompose_attention", "split_fused", "merge_permutes", "fold_batchnorm", "fold_constant_channels",
        "shrink_layer_norm", "align_head_dims", "shrink", "gather", "explain",
    ]  # fmt: skip


def test_align_rounds_widths_up_and_computes_the_same() -> None:
    model = build("alexnet", "rows")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    compact, tight = sparsefx.export(model, (x,), align=8), sparsefx.export(model, (x,))
    for name, conv in compact.named_modules():
        if isinstance(conv, nn.Conv2d):
            full = model.get_submodule(name).out_channels
            assert conv.out_channels % 8 == 0 or conv.out_channels == full
            assert conv.out_channels >= tight.get_submodule(name).out_channels
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_model_that_does_not_trace_comes_back_whole() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    model = Branching()
    with pytest.warns(UserWarning, match="returned whole"):
        compact = sparsefx.export(model, (torch.ones(1, 4),))
    assert torch.equal(compact(torch.ones(1, 4)), model(torch.ones(1, 4)))


def test_a_batch_size_fixed_in_the_model() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.view(5, 4)))

    model = Fixed().double()
    model.head.weight.data[:, :3] = 0
    x = torch.randn(5, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert compact.get_submodule("layer").out_features == 3
    assert relative_difference(compact(x), model(x)) <= 1e-11


@pytest.mark.parametrize("masked", [True, False])
def test_weights_that_are_not_finite_are_named(masked: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model = sparsefx.sparsify(model, 0.5) if masked else model
    for layer in ("0", "2"):
        broken = copy.deepcopy(model)
        broken.get_parameter(f"{layer}.weight").data[:, 1] = torch.nan
        with pytest.raises(ArgumentError, match=rf"{layer}.weight of model is not finite.* a checkpoint"):
            sparsefx.export(broken, (torch.randn(1, 4),))


def test_wrong_arguments() -> None:
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(4, 4)), 0.5)
    with pytest.raises(ArgumentError, match="example_inputs do not run"):
        sparsefx.export(model, (torch.randn(1, 5),))
    with pytest.raises(ArgumentError, match=r"tuple of positional arguments like \(x,\)"):
        sparsefx.export(model, {"x": torch.randn(1, 4)})
    with pytest.raises(ArgumentError, match="align=0 is not a positive integer"):
        sparsefx.export(model, (torch.randn(1, 4),), align=0)
    with pytest.raises(ArgumentError, match=r"must be a torch.nn.Module, got int"):
        sparsefx.export(3, (torch.randn(1, 4),))
    for nothing in (torch.randn(0, 4), torch.randn(2, 0, 4), torch.randn(1, 4, device="meta")):
        with pytest.raises(ArgumentError, match=r"tensor without values, of shape .* a sample is needed"):
            sparsefx.export(model, (nothing,))
    hollow = copy.deepcopy(model)
    hollow.get_submodule("0").bias = nn.Parameter(torch.empty(4, device="meta"))
    with pytest.raises(ArgumentError, match=r"0.bias of model is on the meta device .*load_state_dict"):
        sparsefx.export(hollow, (torch.randn(1, 4),))
    hollow = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ArgumentError, match=r"0.weight of model has no shape yet; run the model once"):
        sparsefx.export(hollow, (torch.randn(1, 4),))
    locked = nn.Sequential(nn.Linear(4, 4))
    locked.lock = threading.Lock()
    with pytest.raises(ArgumentError, match=r"model cannot be copied .*: cannot pickle .*'lock' holds"):
        sparsefx.export(locked, (torch.randn(1, 4),))
    torch.nn.init.ones_(model.get_parameter("0.weight"))
    with pytest.raises(InvariantError, match=r"in 0; call sparsefx.apply_masks"):
        sparsefx.export(model, (torch.randn(1, 4),))


def test_masked_layers_alone_export() -> None:
    layer = MaskedLinear(4, 3)
    compact = sparsefx.export(nn.Sequential(layer), (torch.randn(2, 4),))
    assert type(compact.get_submodule("0")) is nn.Linear


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_view_of_a_map_in_another_memory_order() -> None:
    """Fewer channels may come out of a convolution in an order that a view refuses; a reshape does not."""

    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8 * 36, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)).contiguous()
            return self.last(x.view(x.size(0), -1))

    torch.manual_seed(0)
    model = Permuted().double()
    model.last.weight.data.view(2, 8, 36)[:, 1:] = 0
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert compact.get_submodule("first").out_channels == 1
    assert relative_difference(compact(x), model(x)) <= 1e-11
