"""The networks of the papers: their sizes as published, and that they can be masked and exported."""

import math
import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import fx, nn

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.experiments.networks import NETWORKS, SETTINGS, Network, network
from sparsefx.experiments.networks.network import scaled
from sparsefx.masking.layers import MASKABLE
from sparsefx.masking.selection import find_candidates, select_dense
from sparsefx.report.costs import layer_flops

# weights, biases, batch norm, total, millions of multiply-adds (None: not published)
SIZES = {
    "lenet-300-100": (266_200, 410, 0, 266_610, 0.266),
    "lenet-300-100-norm": (266_200, 0, 820, 267_020, 0.266),
    "lenet5-caffe": (430_500, 580, 0, 431_080, 2.29),
    "alexnet-s": (5_066_784, 3_434, 6_848, 5_077_066, 57.7),
    "alexnet-b": (8_484_896, 5_482, 10_944, 8_501_322, 61.1),
    "vgg16-c": (11_307_712, 5_258, 10_496, 11_323_466, 311),
    "vgg16-c-snip": (10_521_280, 5_258, 10_496, 10_537_034, None),
    "vgg16-d": (15_239_872, 5_258, 10_496, 15_255_626, 314),
    "vgg16-like": (14_977_728, 4_746, 9_472, 14_991_946, 314),
    "wrn-16-8": (10_954_160, 10, 7_200, 10_961_370, 1_550),
    "wrn-16-10": (17_107_632, 10, 8_992, 17_116_634, 2_410),
    "wrn-22-8": (17_147_312, 10, 10_784, 17_158_106, 2_450),
    "wrn-28-2": (1_463_984, 10, 3_616, 1_467_610, 214),
    "wrn-28-2-no-dropout": (1_463_984, 10, 3_616, 1_467_610, 214),
    "resnet-50": (25_502_912, 1_000, 53_120, 25_557_032, 4_090),
    "resnet-50-fan-in": (25_502_912, 1_000, 53_120, 25_557_032, 4_090),
}

VGG_D = [1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648, *[2_359_296] * 5]
VGG_C = [*VGG_D[:6], 65_536, *VGG_D[7:9], 262_144, *VGG_D[10:12], 262_144]
ALEXNET = [34_848, 614_400, 884_736, 1_327_104, 884_736]


def wide_16(groups: list[tuple[int, int, int]], last: int) -> list[int]:
    """First convolution, shortcut and the other three convolutions of each group of two blocks."""
    return [432, *(n for first, shortcut, rest in groups for n in (first, rest, shortcut, rest, rest)), last]


WEIGHTS = {
    "lenet-300-100": [235_200, 30_000, 1_000],
    "lenet5-caffe": [500, 25_000, 400_000, 5_000],
    "alexnet-s": [*ALEXNET, 262_144, 1_048_576, 10_240],
    "alexnet-b": [*ALEXNET, 524_288, 4_194_304, 20_480],
    "vgg16-c": [*VGG_C, 1_048_576, 262_144, 5_120],
    "vgg16-c-snip": [*VGG_C, 262_144, 262_144, 5_120],
    "vgg16-d": [*VGG_D, 262_144, 262_144, 5_120],
    "vgg16-like": [*VGG_D, 262_144, 5_120],
    "wrn-16-8": wide_16(
        [(18_432, 2_048, 147_456), (294_912, 32_768, 589_824), (1_179_648, 131_072, 2_359_296)], 5_120
    ),
    "wrn-16-10": wide_16(
        [(23_040, 2_560, 230_400), (460_800, 51_200, 921_600), (1_843_200, 204_800, 3_686_400)], 6_400
    ),
}
LAYERS = {"wrn-22-8": 23, "wrn-28-2": 29, "wrn-28-2-no-dropout": 29, "resnet-50": 54, "resnet-50-fan-in": 54}


def on_meta(chosen: Network, **arguments: float) -> nn.Module:
    with torch.device("meta"):
        return chosen.build(**arguments)


def small(chosen: Network) -> nn.Module:
    """The network at an eighth of its width, with batch norms that have seen something."""
    torch.manual_seed(0)
    model = chosen.build(width=0.125)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


def layers(model: nn.Module, kinds: type | tuple[type, ...] = MASKABLE) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes(name: str) -> None:
    model = on_meta(network(name))
    norms = layers(model, nn.modules.batchnorm._BatchNorm)
    weights = sum(layer.weight.numel() for layer in layers(model))
    biases = sum(layer.bias.numel() for layer in layers(model) if layer.bias is not None)
    of_norms = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (weights, biases, of_norms, total) == SIZES[name][:4]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_every_layer(name: str) -> None:
    assert [layer.weight.numel() for layer in layers(on_meta(network(name)))] == WEIGHTS[name]


@pytest.mark.parametrize("name", LAYERS)
def test_number_of_layers(name: str) -> None:
    assert len(layers(on_meta(network(name)))) == LAYERS[name]


def test_every_network_is_in_a_table() -> None:
    assert set(SIZES) == set(NETWORKS)
    assert set(WEIGHTS) | set(LAYERS) | {"lenet-300-100-norm"} == set(NETWORKS)


def _counted() -> list[Any]:
    """The networks whose multiply-adds a paper gives; large ones are slow tests."""
    given = [name for name, row in SIZES.items() if row[4] is not None]
    large = pytest.mark.slow
    return [pytest.param(name, marks=large if "resnet-50" in name else []) for name in given]


@pytest.mark.parametrize("name", _counted())
def test_multiply_adds(name: str) -> None:
    chosen = network(name)
    flops = layer_flops(chosen.build(), (torch.zeros(1, *chosen.input_shape),))
    assert sum(flops.values()) / 2e6 == pytest.approx(SIZES[name][4], rel=0.005)


def shapes_of_convolutions(name: str) -> list[int]:
    """The height of every convolution's output."""
    chosen, sizes = network(name), []
    model = chosen.build(width=0.05).eval()
    for layer in layers(model, nn.Conv2d):
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[2]))
    logits = model(torch.zeros(2, *chosen.input_shape))
    assert logits.shape == (2, chosen.classes)
    return sizes


def test_spatial_sizes() -> None:
    assert shapes_of_convolutions("lenet5-caffe") == [24, 8]
    assert shapes_of_convolutions("alexnet-s") == [13, 7, 4, 2, 1]
    assert shapes_of_convolutions("vgg16-d") == [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    assert shapes_of_convolutions("vgg16-c-snip") == shapes_of_convolutions("vgg16-d")
    assert shapes_of_convolutions("vgg16-c") == [32, 32, 16, 16, 8, 8, 10, 5, 5, 7, 3, 3, 5]
    wide = shapes_of_convolutions("wrn-16-8")
    assert sorted(set(wide), reverse=True) == [32, 16, 8]
    assert [wide.count(size) for size in (32, 16, 8)] == [6, 5, 5]


def test_convolutions_of_vgg_are_where_the_reference_code_has_them() -> None:
    indices = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
    for name in ("vgg16-c", "vgg16-d", "vgg16-like"):
        features = on_meta(network(name)).get_submodule("features")
        assert [i for i, layer in enumerate(features.children()) if isinstance(layer, nn.Conv2d)] == indices
        pools = [i for i, layer in enumerate(features.children()) if isinstance(layer, nn.MaxPool2d)]
        assert pools == [6, 13, 23, 33, 43]


def test_resnet_is_torchvisions() -> None:
    """Same names, same function, the mode of the norms included."""
    torch.manual_seed(0)
    theirs, ours = torchvision.models.resnet50(), network("resnet-50").build()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


def dense_names(chosen: Network, setting: str) -> dict[str, int]:
    """The layers that a setting keeps dense, and their sizes."""
    model = on_meta(chosen)
    candidates = find_candidates(model, ())
    kept = select_dense(candidates, chosen.dense_layers(setting), model)
    return {c.name: c.weight.numel() for c in candidates if c.name in kept}


def test_dense_layers_of_wide_resnet() -> None:
    sizes = dense_names(network("wrn-28-2"), "dynamic-sparse")
    assert list(sizes.values()) == [432, 512, 2_048, 8_192, 1_280]
    assert sum(sizes.values()) == 12_464


def test_dense_layers_of_resnet() -> None:
    sizes = dense_names(network("resnet-50"), "dynamic-sparse")
    assert list(sizes.values()) == [9_408, 16_384, 131_072, 524_288, 2_097_152]
    assert 25_502_912 - sum(sizes.values()) == 22_724_608


@pytest.mark.parametrize(
    ("name", "density", "percent"),
    [
        ("vgg16-d", 0.05, 26.1),
        ("vgg16-c", 0.05, 15.9),
        ("vgg16-like", 0.03, 25.0),
        ("alexnet-s", 0.1, 25.7),
        ("alexnet-b", 0.1, 19.4),
    ],
)
def test_true_density_of_the_first_version(name: str, density: float, percent: float) -> None:
    kept, weights = sum(dense_names(network(name), "first-version").values()), SIZES[name][0]
    assert round(100 * (kept + density * (weights - kept)) / weights, 1) == percent


def test_every_setting_is_described_and_selects_layers() -> None:
    for chosen in NETWORKS.values():
        assert set(chosen.dense) <= set(SETTINGS)
        for setting, names in chosen.dense.items():
            assert bool(dense_names(chosen, setting)) == bool(names)


def test_dropout_of_wide_resnets() -> None:
    def rates(name: str) -> set[float]:
        return {layer.p for layer in layers(on_meta(network(name)), nn.Dropout)}

    assert rates("wrn-28-2") == rates("wrn-16-10") == {0.3}
    assert rates("wrn-28-2-no-dropout") == {0.0}


@pytest.mark.parametrize(
    ("name", "layer", "variance"),
    [
        ("wrn-16-8", "groups.1.0.conv1", 2 / (9 * 256)),  # by outputs, of which there are twice the inputs
        ("resnet-50", "layer2.0.downsample.0", 2 / 512),
        ("resnet-50-fan-in", "layer2.0.downsample.0", 2 / 256),
    ],
)
def test_initialisation(name: str, layer: str, variance: float) -> None:
    torch.manual_seed(0)
    weight = network(name).build().get_submodule(layer).weight
    assert weight.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / weight.numel()))
    assert weight.mean().item() == pytest.approx(0, abs=4 * math.sqrt(variance / weight.numel()))


@pytest.mark.parametrize("name", NETWORKS)
def test_sparsify_traces(name: str) -> None:
    dense = small(network(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a part that does not trace is named in a warning
        sparse = sparsefx.sparsify(dense, density=0.5)
    assert isinstance(sparse, fx.GraphModule)
    assert len(sparsefx.masked_weights(sparse)) == len(layers(dense))


FAMILIES = ["lenet-300-100", "lenet-300-100-norm", "lenet5-caffe", "alexnet-s", "vgg16-c"]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("wrn-16-8", "resnet-50")]


@pytest.mark.parametrize("name", [*FAMILIES, *LARGE])
def test_export_computes_the_same(name: str) -> None:
    chosen = network(name)
    sparse = sparsefx.sparsify(small(chosen).double(), density=0.3).eval()
    for masked in sparsefx.masked_weights(sparse)[:-1]:  # a third of the outputs without a weight
        mask = masked.mask.clone()
        mask[: mask.shape[0] // 3] = False
        masked.set_mask(mask)
    height = 64 if chosen.input_shape[1] == 224 else chosen.input_shape[1]
    images = torch.randn(2, chosen.input_shape[0], height, height, dtype=torch.float64)
    compact = sparsefx.export(sparse, (images,))
    torch.testing.assert_close(compact(images), sparse(images), rtol=1e-9, atol=1e-11)
    before = sum(layer.weight.numel() for layer in layers(sparse))
    assert sum(layer.weight.numel() for layer in layers(compact)) < before


def test_seed_decides_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return network("wrn-28-2").build(width=0.25).get_parameter("conv1.weight")

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_scaled_rounds_half_up_and_keeps_one() -> None:
    assert [scaled(5, 0.5), scaled(7, 0.5), scaled(64, 0.46), scaled(3, 0.01)] == [3, 4, 29, 1]


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf])
def test_width_must_be_positive(width: float) -> None:
    with pytest.raises(ArgumentError, match=rf"width={width!r} is not a positive number"):
        network("vgg16-d").build(width=width)


def test_unknown_names() -> None:
    with pytest.raises(ArgumentError, match="network='vgg16-e' is not known; did you mean 'vgg16-"):
        network("vgg16-e")
    with pytest.raises(ArgumentError, match="setting of vgg16-d='dynamic-sparse' is not known"):
        network("vgg16-d").dense_layers("dynamic-sparse")


def test_a_name_may_be_spelled_in_several_ways() -> None:
    for name in NETWORKS:
        for spelling in (
            name,
            name.upper(),
            name.replace("-", "_"),
            name.replace("-", ""),
            name.replace("-", " "),
        ):
            assert network(spelling) is NETWORKS[name]
    assert network("lenet300-100").name == "lenet-300-100"
    assert network("LeNet5").name == "lenet5-caffe"
    with pytest.raises(ArgumentError, match="network='lenet300' is not known; did you mean 'lenet-300-100'"):
        network("lenet300")
