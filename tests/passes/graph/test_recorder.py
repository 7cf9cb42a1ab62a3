"""What is recorded of a run."""

from __future__ import annotations

import pytest
import torch
from networks import relative_difference
from torch import Tensor, fx, nn
from torch.nn.utils import rnn

import sparsefx
from sparsefx.passes.graph.recorder import record_once

KINDS = [nn.GRU, nn.LSTM, nn.RNN, lambda *sizes: nn.RNN(*sizes, nonlinearity="relu")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_recurrent_layer_is_one_call(kind: type[nn.RNNBase], dtype: torch.dtype) -> None:
    model = fx.symbolic_trace(nn.Sequential(kind(4, 3)).to(dtype).eval())
    program = record_once(model, (torch.randn(40, 2, 4, dtype=dtype),))
    calls = [call for call in program.calls if call.name not in ("zeros", "detach")]  # the first state
    assert [call.name for call in calls] in (["gru"], ["lstm"], ["rnn_tanh"], ["rnn_relu"])
    assert [tuple(value.shape) for value in program.node_values[calls[0].node]][:2] == [(40, 2, 3), (1, 2, 3)]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent, self.last = nn.Linear(4, 8), nn.GRU(8, 5), nn.Linear(5, 6)
        self.end = nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.first(x), lengths, enforce_sorted=False)
        return self.end(self.last(rnn.pad_packed_sequence(self.recurrent(packed)[0])[0]).relu())


def test_a_recurrent_layer_on_packed_sequences() -> None:
    torch.manual_seed(0)
    model = Packed().double().eval()
    with torch.no_grad():
        model.last.weight[::2] = 0
    x, lengths = torch.randn(7, 3, 4, dtype=torch.float64), torch.tensor([3, 7, 2])
    compact = sparsefx.export(model, (x, lengths))
    assert compact.get_submodule("last").out_features == 3
    assert relative_difference(compact(x, lengths), model(x, lengths)) <= 1e-11


def test_a_write_whose_functional_form_has_its_arguments_in_another_order() -> None:
    """``polygamma_(x, n)`` is ``polygamma(n, x)``."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).abs().add(1).polygamma_(2))

    torch.manual_seed(0)
    model = Net().double().eval()
    with torch.no_grad():
        model.first.weight[::2] = 0
    x = torch.randn(3, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert compact.get_submodule("first").out_features == 4
    assert relative_difference(compact(x), model(x)) <= 1e-11
