"""``export(..., passes=)``: the pipeline as data that users print, cut and extend."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from networks import relative_difference
from torch import fx, nn

import sparsefx
from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.manager.pipeline import Outcome


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        net[0].weight[5:] = 0
    return net


X = torch.randn(3, 4)


def test_every_cut_of_the_pipeline_computes_the_same() -> None:
    net, passes = network(), sparsefx.default_passes()
    for name in passes.names:
        compact = sparsefx.export(net, (X,), passes=passes.until(name))
        assert relative_difference(compact(X), net(X)) <= 1e-5
        assert [step.name for step in compact.report.passes] == list(passes.until(name).names)


def test_a_pipeline_without_shrink_removes_nothing() -> None:
    compact = sparsefx.export(network(), (X,), passes=sparsefx.default_passes().without("shrink"))
    assert compact.get_submodule("0").out_features == 8


def test_a_pass_of_ones_own_runs_in_its_place() -> None:
    seen: list[int] = []

    @dataclass(frozen=True)
    class CountCalls:
        name = "count_calls"

        def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
            seen.append(len(analyses.program.calls))
            return Outcome(False, f"{seen[-1]} calls")

    compact = sparsefx.export(network(), (X,), passes=[*sparsefx.default_passes(), CountCalls()])
    assert seen[0] > 0
    assert "count_calls: " in str(compact.report)


def test_a_pass_that_changes_the_function_is_refused() -> None:
    @dataclass(frozen=True)
    class Damage:
        name = "damage"

        def run(self, graph_module: fx.GraphModule, analyses: Analyses) -> Outcome:
            graph_module.get_submodule("0").bias.data += 1
            return Outcome(True, "harm done")

    net = network()
    with pytest.warns(UserWarning, match="damage would change its outputs"):
        compact = sparsefx.export(net, (X,), passes=[Damage()])
    assert torch.equal(compact(X), net(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": ["shrink"]}, "passes holds 'shrink', which is no pass"),
        ({"passes": [], "align": 8}, "passes= together with align"),
        ({"passes": sparsefx.default_passes(), "fold_batchnorm": False}, "passes fold BatchNorm"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(sparsefx.ArgumentError, match=message):
        sparsefx.export(network(), (X,), **options)


def test_unknown_passes_are_named() -> None:
    with pytest.raises(ValueError, match="no pass is called 'srink'; there are functionalize, "):
        sparsefx.default_passes().until("srink")
