"""The report: hand-computed numbers, plain data, printed tables."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import random_mask
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import nn
from torch.nn import functional as F

import sparsefx
from sparsefx import ArgumentError, ExportReport, ModelReport
from sparsefx.masking.layers import mask_layer
from sparsefx.passes.manager.pipeline import RegionReport
from sparsefx.report.model_report import empty_channels


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(3, 4))
        self.vector = nn.Parameter(torch.randn(3))
        self.head = nn.Linear(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.linear(F.linear(x, self.projection), self.vector).unsqueeze(1))


def describe(model: nn.Module, **options: Any) -> ModelReport:
    report = sparsefx.report(model, **options)
    assert isinstance(report, ModelReport)
    return report


def linear_with_empty_channels() -> nn.Sequential:
    """(3, 4): output 1 is empty, inputs 0 and 3 are empty; one active weight is 0."""
    layer = nn.Linear(4, 3)
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]).bool()
    mask_layer(layer, mask)
    with torch.no_grad():
        layer.weight.copy_(mask.float())
        layer.weight[2, 3] = 0
    return nn.Sequential(layer)


def test_a_linear_layer_by_hand() -> None:
    (layer,) = describe(linear_with_empty_channels(), example_inputs=(torch.randn(5, 4),)).layers
    assert (layer.name, layer.shape) == ("0", (3, 4))
    assert layer.density == 4 / 12
    assert (layer.nonzeros, layer.parameters) == (3, 15)
    assert (layer.in_channels, layer.out_channels) == (4, 3)
    assert (layer.empty_inputs, layer.empty_outputs) == (2, 1)
    assert (layer.flops_dense, layer.flops_sparse) == (24, 8)


def test_totals_by_hand() -> None:
    model = nn.Sequential(linear_with_empty_channels()[0], nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    report = describe(model)
    assert report.parameters == 15 + 6 + 6
    assert report.density == pytest.approx(4 / 12)  # the dense layer does not count
    assert report.density_of_all == pytest.approx((27 - 8) / 27)
    assert all(layer.flops_dense is None and layer.flops_sparse is None for layer in report.layers)


def test_a_grouped_convolution_by_hand() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1)
        conv.weight[0] = 0  # output 0
        conv.weight[:3, 1] = 0  # input 1, read by the first group through its column 1
        conv.weight[4, 0] = 0  # no empty channel: outputs 3 and 5 still read input 2
    (layer,) = describe(nn.Sequential(conv), example_inputs=(torch.randn(2, 4, 5, 7),)).layers
    assert (layer.in_channels, layer.out_channels) == (4, 6)
    assert (layer.empty_inputs, layer.empty_outputs) == (1, 1)
    assert layer.nonzeros == (12 - 2 - 2 - 1) * 9
    assert layer.density == 7 / 12
    assert layer.flops_dense == 2 * (6 * 2 * 9) * (3 * 5)


def test_a_grouped_transposed_convolution_by_hand() -> None:
    conv = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
    with torch.no_grad():
        conv.weight.fill_(1)
        conv.weight[1] = 0  # input 1
        conv.weight[2:, 0] = 0  # output 3: column 0 of the second group
    (layer,) = describe(nn.Sequential(conv), example_inputs=(torch.randn(2, 4, 5, 7),)).layers
    assert (layer.shape, layer.in_channels, layer.out_channels) == ((4, 3, 2, 2), 4, 6)
    assert (layer.empty_inputs, layer.empty_outputs) == (1, 1)
    assert layer.parameters == 4 * 3 * 4 + 6
    assert layer.flops_dense == 2 * (4 * 3 * 4) * (5 * 7)


@properties(60)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 1000))
def test_empty_channels_are_those_of_the_ungrouped_matrix(
    groups: int, inputs: int, outputs: int, transposed: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = (groups * inputs, outputs) if transposed else (groups * outputs, inputs)
    weight = torch.randn(*shape, 2) * (torch.rand(*shape, 1) < 0.4)
    per_group = [
        block if transposed else block.transpose(0, 1) for block in weight.abs().sum(2).chunk(groups)
    ]
    matrix = torch.block_diag(*per_group)  # (in, out)
    expected = (int((matrix.sum(1) == 0).sum()), int((matrix.sum(0) == 0).sum()))
    assert empty_channels(weight, transposed, groups) == expected


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.Linear(4, 3), (4,), 24),
        (nn.Linear(4, 3), (7, 4), 24),
        (nn.Linear(4, 3), (7, 5, 4), 24 * 5),
        (nn.Conv1d(2, 3, 3, padding=1), (2, 2, 8), 2 * 18 * 8),
        (nn.Conv2d(2, 3, 3, stride=2), (2, 7, 7), 2 * 54 * 9),
        (nn.Conv2d(2, 3, 3, stride=2), (5, 2, 7, 7), 2 * 54 * 9),
        (nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3), 2 * 16 * 8),
        (nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 2, 8), 2 * 18 * 8),
        (nn.ConvTranspose2d(2, 3, 3), (2, 4, 5), 2 * 54 * 20),
    ],
)
def test_flops_of_one_sample_by_hand(layer: nn.Module, shape: tuple[int, ...], flops: int) -> None:
    (row,) = describe(nn.Sequential(layer), example_inputs=(torch.randn(shape),)).layers
    assert row.flops_dense == flops
    assert row.flops_sparse == flops


def test_flops_count_every_call() -> None:
    layer = nn.Linear(4, 4)
    (row,) = describe(nn.Sequential(layer, layer), example_inputs=(torch.randn(3, 4),)).layers
    assert row.flops_dense == 2 * 32


def test_a_tied_weight_counts_once_in_the_totals() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    report = describe(sparsefx.sparsify(model, density=0.5))
    assert (report.parameters, report.density, report.density_of_all) == (16, 0.5, 0.5)
    assert [layer.nonzeros for layer in report.layers] == [8, 8]


def test_masked_parameters_outside_layers_appear() -> None:
    report = describe(sparsefx.sparsify(Functional(), density=0.5), example_inputs=(torch.randn(2, 4),))
    rows = {layer.name: layer for layer in report.layers}
    assert set(rows) == {"projection", "vector", "head"}
    assert (rows["projection"].in_channels, rows["projection"].out_channels) == (4, 3)
    assert (rows["vector"].in_channels, rows["vector"].out_channels) == (3, 1)
    assert rows["projection"].parameters == 12
    assert report.parameters == 12 + 3 + 4
    assert sum(layer.nonzeros for layer in report.layers) == round((12 + 3 + 2) * 0.5)


def test_a_reparametrised_layer_is_described_and_not_counted_as_maskable() -> None:
    normalised = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    report = describe(sparsefx.sparsify(nn.Sequential(normalised, nn.Linear(3, 4)), density=0.5, dense="0"))
    assert [layer.shape for layer in report.layers] == [(3, 4), (4, 3)]
    assert report.density == 0.5
    assert report.density_of_all == pytest.approx((report.parameters - 6) / report.parameters)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    x = torch.randn(6, 4)
    torch.manual_seed(3)
    describe(model, example_inputs=(x,))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_called_with_a_keyword_are_counted() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(input=x)

    assert describe(Keyword(), example_inputs=(torch.randn(2, 4),)).layers[0].flops_dense == 24


def test_as_dict_is_json() -> None:
    report = describe(sparsefx.sparsify(Functional(), density=0.5))
    data = json.loads(json.dumps(report.as_dict()))
    assert data["parameters"] == report.parameters
    assert [layer["name"] for layer in data["layers"]] == [layer.name for layer in report.layers]
    assert data["layers"][0]["shape"] == list(report.layers[0].shape)


def test_the_printed_table() -> None:
    text = str(describe(linear_with_empty_channels(), example_inputs=(torch.randn(5, 4),)))
    assert text.splitlines() == [
        "layer  shape  density  empty in  empty out  parameters  nonzeros  FLOPs  FLOPs sparse",
        "-----  -----  -------  --------  ---------  ----------  --------  -----  ------------",
        "0        3x4   0.3333       2/4        1/3          15         3     24             8",
        "15 parameters; density 0.3333 of masked weights, 0.4667 of all parameters",
        "1 active weights are 0, as those that a cycle grew last and no step has trained since",
    ]


def test_a_model_without_layers_has_an_empty_table() -> None:
    report = describe(nn.ReLU())
    assert report.layers == ()
    assert (report.parameters, report.density, report.density_of_all) == (0, 0, 0)
    assert "0 parameters" in str(report)


def test_counts_have_thin_thousands_and_missing_values_a_dash() -> None:
    lines = str(describe(nn.Sequential(nn.Linear(1000, 20)))).splitlines()
    assert "20,020" in lines[2]
    assert lines[2].split()[-2:] == ["-", "-"]


def test_before_and_after() -> None:
    before = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    after = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    report = sparsefx.report(before, after, example_inputs=(torch.randn(1, 4),))
    assert isinstance(report, ExportReport)
    first, gone = report.layers
    assert first.before is not None
    assert first.after is not None
    assert (first.before.out_channels, first.after.out_channels) == (8, 3)
    assert gone.name == "2"
    assert gone.after is None
    assert (report.parameters_before, report.parameters_after) == (58, 15)
    assert (report.channels_before, report.channels_after) == (10, 3)
    data = json.loads(json.dumps(report.as_dict()))
    assert (data["channels_before"], data["channels_after"]) == (10, 3)
    assert "parameters 58 -> 15, channels 10 -> 3" in str(report)


@pytest.mark.parametrize(("arguments", "name"), [((3,), "model"), ((nn.ReLU(), "x"), "after")])
def test_wrong_arguments(arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must be a torch.nn.Module, got"):
        sparsefx.report(*arguments)


def test_density_is_that_of_the_mask_and_nonzeros_that_of_the_weight() -> None:
    layer = nn.Conv2d(2, 4, 3)
    mask_layer(layer, random_mask(layer.weight.shape, 0.5, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        layer.weight.zero_()
    (row,) = describe(nn.Sequential(layer)).layers
    assert row.density == 0.5
    assert row.nonzeros == 0
    assert (row.empty_inputs, row.empty_outputs) == (2, 4)


def test_inputs_that_do_not_run_leave_buffers_as_they_were() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return self.fc(x)

    model = Counts()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        describe(model, example_inputs=(torch.ones(2, 5),))
    assert model.seen == 0


def test_a_layer_without_outputs_has_no_operations() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        none = nn.Linear(4, 0)
    model = nn.Sequential(nn.Linear(2, 4), none)
    report = describe(model, example_inputs=(torch.ones(1, 2),))
    assert [layer.flops_dense for layer in report.layers] == [16, 0]


def test_active_weights_of_value_0_are_told():
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(8, 8)), density=0.5)
    assert sparsefx.report(model).active_zeros == 0
    assert "active weights are 0" not in str(sparsefx.report(model))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=10)
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    grown = optimizer.cycle().layers[0].grown
    assert sparsefx.report(model).active_zeros == grown > 0
    assert f"{grown} active weights are 0, as those that a cycle grew" in str(sparsefx.report(model))


def test_models_without_values_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"0.weight of model has no shape yet; run the model once"):
        sparsefx.report(nn.Sequential(nn.LazyLinear(4)))
    with torch.device("meta"):
        hollow = nn.Sequential(nn.Linear(4, 8))
    with pytest.raises(ArgumentError, match=r"0.weight of model is on the meta device .*to_empty"):
        sparsefx.report(hollow)


@pytest.mark.parametrize(
    ("region", "line"),
    [
        (RegionReport(("a",), None, None, True), "a: sparse kernels"),
        (
            RegionReport(("a", "b", "c"), 0.00123, 0.0041, False),
            "a to c: dense kernels (dense 1.23 ms, sparse 4.10 ms)",
        ),
        (RegionReport(("a",), None, None, False, "it has a hook"), "a: dense kernels (it has a hook)"),
    ],
)
def test_both_reports_say_alike_which_kernels_compute(region: RegionReport, line: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    described, exported = (
        sparsefx.report(model),
        sparsefx.export(model, (torch.ones(1, 2),)).report,
    )
    step = replace(exported.passes[0], regions=(region,))
    for report in (replace(described, regions=(region,)), replace(exported, passes=(step,))):
        assert line in str(report).splitlines()
