"""``torch.save`` and ``pickle`` keep exports and sparsified models, whatever their graphs call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import reloaded
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.graph.pickled_graph import graph_of, graph_state


def zeros_of_its_size(h: Tensor) -> Tensor:
    return h + torch.zeros(h.shape[0], h.shape[1])


def ones_padded(h: Tensor) -> Tensor:
    return torch.cat([h, torch.ones(h.shape[0], 2)], 1)[:, :8]


def item_assigned(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 0] = h[:, 1] * 2
    return h


def limit_of_its_type(h: Tensor) -> Tensor:
    return h.masked_fill(h < -1, torch.finfo(h.dtype).eps)


def counted(h: Tensor) -> Tensor:
    return h / len(h)


def packed(h: Tensor) -> Tensor:
    lengths = torch.full((h.shape[0],), 8)
    sequence = nn.utils.rnn.pack_padded_sequence(h.unsqueeze(2), lengths, batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(sequence, batch_first=True)[0].squeeze(2)


def numbers(h: Tensor) -> Tensor:
    return h * torch.tensor([1.0, 2.0] * 4)


def aten(h: Tensor) -> Tensor:
    return torch.ops.aten.add.Tensor(h, h)


def dispatched(h: Tensor) -> Tensor:
    return F.max_pool1d(h, 2).repeat_interleave(2, 1)


class Around(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x).relu()))


FUNCTIONS = [
    zeros_of_its_size, ones_padded, item_assigned, limit_of_its_type, counted, packed, numbers, aten,
    dispatched,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_torch_save_keeps_an_export(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Around(function).eval()
    net.first.weight.data[5:] = 0
    compact = sparsefx.export(net, (torch.randn(2, 4),))
    assert compact.report.captured == "whole"
    loaded = reloaded(compact)
    for batch in (2, 5):
        x = torch.randn(batch, 4)
        assert torch.equal(loaded(x), compact(x))
        torch.testing.assert_close(loaded(x), net(x))
    assert str(loaded.report) == str(compact.report)
    assert str(copy.deepcopy(loaded).report) == str(compact.report)
    assert type(loaded).__name__ == type(compact).__name__
    assert loaded.code == compact.code


@pytest.mark.parametrize("function", [item_assigned, aten])
def test_pickle_keeps_a_sparsified_model(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    sparse = sparsefx.sparsify(Around(function), 0.5)
    loaded = pickle.loads(pickle.dumps(sparse))
    x = torch.randn(3, 4)
    for mode in (True, False):
        assert torch.equal(loaded.train(mode)(x), sparse.train(mode)(x))


def test_a_loaded_export_is_edited_and_exported_like_another() -> None:
    torch.manual_seed(0)
    net = Around(item_assigned).eval()
    loaded = reloaded(sparsefx.export(net, (torch.randn(2, 4),)))
    loaded.graph.lint()
    again = reloaded(reloaded(loaded))
    x = torch.randn(2, 4)
    assert torch.equal(again(x), loaded(x))
    assert torch.equal(copy.copy(loaded)(x), loaded(x))
    assert torch.equal(sparsefx.export(loaded, (x,))(x), loaded(x))


def test_an_export_that_trains_on_keeps_both_modes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    compact = sparsefx.export(net, (torch.randn(2, 4),), fold_batchnorm=False)
    loaded, x = reloaded(compact), torch.randn(6, 4)
    for mode in (True, False):
        compact.train(mode), loaded.train(mode)
        torch.manual_seed(1)
        expected = compact(x)
        torch.manual_seed(1)
        assert torch.equal(loaded(x), expected)


def test_names_and_arguments_of_nodes_stay() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.add, (x, 1), {"alpha": 2})
    pair = graph.call_function(torch.split, (y, [1, 2], -1))
    item = graph.call_function(torch.ops.aten.slice.Tensor, (pair, 0, None))
    graph.output({"all": (item, [y, slice(None, x)])})
    again = graph_of(pickle.loads(pickle.dumps(graph_state(graph))))
    assert str(again) == str(graph)
    assert [node.target for node in again.nodes] == [node.target for node in graph.nodes]
