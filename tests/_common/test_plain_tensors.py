"""Weights that are no plain parameters: pruned at each call, in sparse layouts, in subclasses of tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.testing._internal.two_tensor import TwoTensor

import sparsefx
from sparsefx.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR|BSR|CSC|BSC) tensor support is in beta")

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def pruned() -> nn.Module:
    model = net()
    prune.ln_structured(model[0], "weight", 0.5, 2, 0)
    prune.l1_unstructured(model[0], "weight", 0.25)
    prune.l1_unstructured(model[2], "bias", 0.5)
    return model


def in_layout(layout: torch.layout, **options: Any) -> nn.Module:
    model = net()
    model[0].weight = nn.Parameter(pruned()[0].weight.detach().to_sparse(layout=layout, **options))
    return model


FORMS = {
    "pruned": pruned,
    "csr": lambda: in_layout(torch.sparse_csr),
    "bsr": lambda: in_layout(torch.sparse_bsr, blocksize=(2, 2)),
}


class Quantised(TwoTensor):
    """Stands for other numbers than it holds, as torchao's tensors do."""

    def dequantize(self) -> torch.Tensor:
        return 2 * self.a


def wrapped(kind: type[TwoTensor]) -> nn.Module:
    model = net()
    model[0].weight = nn.Parameter(kind(model[0].weight.detach().clone(), model[0].weight.detach().clone()))
    return model


@pytest.mark.parametrize("form", FORMS)
def test_export_cuts_and_keeps_the_function(form: str) -> None:
    model = FORMS[form]()
    compact = sparsefx.export(model, (X,))
    assert compact.get_submodule("0").out_features == 4
    torch.testing.assert_close(compact(X), model(X))


@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_loaded_into_the_same_model(form: str, tmp_path: Path) -> None:
    model = FORMS[form]()
    compact = sparsefx.export(model, (X,))
    sparsefx.save(compact, tmp_path / "net")
    assert torch.equal(sparsefx.load(tmp_path / "net", model)(X), compact(X))
    assert prune.is_pruned(model) is (form == "pruned")


@pytest.mark.parametrize("form", FORMS)
def test_report_counts_what_is_zero(form: str) -> None:
    (layer, _) = sparsefx.report(FORMS[form]()).layers
    assert (layer.empty_outputs, layer.nonzeros) == (4, 12)


@pytest.mark.parametrize("form", ["csr", "bsr"])
def test_sparsify_makes_them_dense(form: str) -> None:
    model = FORMS[form]()
    sparse = sparsefx.sparsify(model, density=1)
    assert [masked.name for masked in sparsefx.masked_weights(sparse)] == ["0", "2"]
    torch.testing.assert_close(sparse(X), model(X))


def parametrised() -> nn.Module:
    model = net()
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    return model


COMPUTED = {"pruned": pruned, "parametrised": parametrised, "quantised": lambda: wrapped(Quantised)}


@pytest.mark.parametrize("form", COMPUTED)
def test_sparsify_names_layers_that_stay_dense(form: str) -> None:
    with pytest.warns(
        UserWarning, match=r"1 layers stay dense \(0\), because their weight is no plain param"
    ):
        sparse = sparsefx.sparsify(COMPUTED[form](), trace=False)
    assert [masked.name for masked in sparsefx.masked_weights(sparse)] == ["2"]


def test_no_warning_of_layers_that_dense_names() -> None:
    sparse = sparsefx.sparsify(pruned(), dense="0")
    assert [masked.name for masked in sparsefx.masked_weights(sparse)] == ["2"]


def test_nothing_left_to_mask() -> None:
    model = net()
    prune.global_unstructured([(model[0], "weight"), (model[2], "weight")], prune.L1Unstructured, amount=0.5)
    with pytest.raises(ArgumentError, match=r"no layer to mask: 2 layers stay dense .*prune\.remove"):
        sparsefx.sparsify(model)


def test_export_refuses_subclasses_of_tensor() -> None:
    with pytest.raises(
        ArgumentError, match=r"0\.weight of model is of class Quantised of tests.*before it is"
    ):
        sparsefx.export(wrapped(Quantised), (X,))


def test_report_of_subclasses_of_tensor() -> None:
    model = wrapped(Quantised)
    with torch.no_grad():
        model[0].weight.a[1] = 0
    assert sparsefx.report(model).layers[0].empty_outputs == 1
    with pytest.raises(
        ArgumentError, match=r"the weight of 0 is of class TwoTensor of torch, which does not"
    ):
        sparsefx.report(wrapped(TwoTensor))
