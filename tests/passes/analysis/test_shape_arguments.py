"""Literal sizes and positions follow when channels go: each kind of node that holds some."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import relative_difference
from torch import Tensor, fx, nn

import sparsefx

Part = Callable[[Tensor], Tensor]


def _swapped(one: Tensor, other: Tensor) -> Tensor:
    return torch.cat([other, one], 1)


class Around(nn.Module):
    """An operation between two layers; channels 0, 1 and 5 of eight do nothing."""

    def __init__(self, function: Part, width: int) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(4, 8), nn.Linear(width, 3)
        with torch.no_grad():
            self.first.weight[[0, 1, 5]] = 0
            self.first.bias[[0, 1, 5]] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.relu(self.first(x))))


CASES: dict[str, tuple[Part, int, int]] = {  # function, its width, channels that stay
    "view": (lambda x: x.view(-1, 8), 8, 5),
    "view of a tuple": (lambda x: x.view((x.shape[0], 8)), 8, 5),
    "reshape": (lambda x: x.reshape(x.shape[0], 1, 8).reshape(-1, 8), 8, 5),
    "reshape by keyword": (lambda x: torch.reshape(x, shape=(-1, 8)), 8, 5),
    "expand": (lambda x: x.unsqueeze(1).expand(-1, 3, 8).mean(1), 8, 5),
    "unflatten": (lambda x: x.unflatten(1, (8, 1)).squeeze(2), 8, 5),
    "unflatten to -1": (lambda x: torch.unflatten(x, 1, (1, -1)).squeeze(1), 8, 5),
    "split": (lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1), 8, 6),
    "split by size": (lambda x: torch.cat(torch.split(x, 4, dim=1), 1), 8, 5),
    "split with sizes": (lambda x: torch.cat(x.split_with_sizes([3, 5], dim=-1), 1), 8, 5),
    "chunk": (lambda x: torch.cat(x.chunk(2, 1), 1), 8, 5),
    "chunk by keyword": (lambda x: torch.cat(torch.chunk(x, chunks=4, dim=-1)[1:], 1), 6, 6),
    "unpacked": (lambda x: _swapped(*x.chunk(2, 1)), 8, 5),
    "tensor_split": (lambda x: torch.cat(x.tensor_split([3, 5], dim=1), 1), 8, 5),
    "narrow": (lambda x: x.narrow(1, 3, 5), 5, 4),
    "narrow by keyword": (lambda x: torch.narrow(x, dim=-1, start=2, length=4), 4, 3),
    "select": (lambda x: x * x.select(1, 4).unsqueeze(1), 8, 5),
    "select from the end": (lambda x: x * torch.select(x, -1, -1)[:, None], 8, 5),
    "slice": (lambda x: x[:, 3:7], 4, 3),
    "slice from the end": (lambda x: torch.cat([x[:, -4:], x[:, :-4]], 1), 8, 5),
    "slice after an ellipsis": (lambda x: x[..., 2:], 6, 5),
    "index": (lambda x: x * x[:, 3, None], 8, 5),
    "slice beyond the end": (lambda x: x[:, 1:100], 7, 5),
}


@pytest.mark.parametrize("name", CASES)
def test_literals_follow(name: str) -> None:
    torch.manual_seed(0)
    function, width, stay = CASES[name]
    model = Around(function, width).double().eval()
    compact = sparsefx.export(model, (torch.randn(2, 4, dtype=torch.float64),))
    x = torch.randn(5, 4, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-12
    assert compact.first.out_features <= stay


def test_steps_keep_their_dimension_whole() -> None:
    torch.manual_seed(0)
    model = Around(lambda x: x[:, 1::2], 4).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x), model(x)) <= 1e-12
    assert compact.first.out_features == 8


def test_the_graph_says_the_new_numbers() -> None:
    torch.manual_seed(0)
    model = Around(lambda x: torch.cat([x[:, 4:].view(-1, 4), x.narrow(1, 2, 2)], 1), 6).double()
    compact = sparsefx.export(model, (torch.randn(2, 4, dtype=torch.float64),))
    assert isinstance(compact, fx.GraphModule)
    arguments = {node.name: node.args[1:] for node in compact.graph.nodes}
    assert arguments["view"] == (-1, 3)
    assert arguments["narrow"] == (1, 0, 2)
