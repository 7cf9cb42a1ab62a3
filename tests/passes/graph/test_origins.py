"""Origins: whatever is taken of a parameter, it is known which elements those are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsefx.passes.graph.origins import (
    Origin,
    duplicate,
    follow,
    mark,
    origin_of,
    reorder,
    rows_of,
    take_origins,
)


def other_columns_in_each_row(tensor: Tensor) -> Tensor:
    return tensor.gather(1, torch.tensor([[0, 2], [1, 2], [0, 1], [3, 0]]))


TAKES = {
    "rows": lambda tensor: tensor[[2, 0]],
    "columns": lambda tensor: tensor[:, 1:],
    "both": lambda tensor: tensor.flip(0)[:, [3, 0]],
    "columns by row": other_columns_in_each_row,
    "one": lambda tensor: tensor[3:, :1],
    "nothing": lambda tensor: tensor[:0],
}


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
@pytest.mark.parametrize("again", TAKES.values(), ids=TAKES)
def test_what_is_taken_can_be_taken_from_others_of_its_shape(take, again) -> None:
    def both(tensor: Tensor) -> Tensor:
        try:
            return again(take(tensor))
        except (IndexError, RuntimeError):
            return take(tensor)

    values = torch.arange(16.0).view(4, 4)
    origin = Origin.whole("w", values.shape).taken(both)
    assert torch.equal(origin.cut(values), both(values))
    assert origin.kept == both(values).shape
    assert Origin.whole("w", values.shape).taken(take).matches(origin) == torch.equal(
        both(values), take(values)
    )


def test_a_statistic_of_rows_is_cut_with_the_rows() -> None:
    origin = Origin.whole("w", torch.Size((4, 4))).taken(TAKES["both"])
    rows, columns = torch.arange(4.0)[:, None], torch.arange(4.0)[None]
    assert origin.cut(rows).tolist() == [[3], [2], [1], [0]]
    assert origin.cut(columns).tolist() == [[3, 0]]
    assert origin.cut(torch.ones(4)) is None
    assert origin.cut(torch.ones(4, 2)) is None
    by_row = Origin.whole("w", torch.Size((4, 4))).taken(other_columns_in_each_row)
    assert by_row.cut(columns) is None
    assert torch.equal(by_row.cut(rows), rows)
    assert Origin.whole("s", torch.Size()).cut(torch.tensor(3.0)) == 3


def test_origins_are_carried_along_and_taken_off() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].bias = model[0].bias
    mark(model)
    copied = duplicate(model)
    copied[0].weight = rows_of(copied[0].weight, torch.tensor([3, 1]))
    reorder(copied[0].bias, 0, torch.tensor([1, 0, 3, 2]))
    copied[1].weight = nn.Parameter(torch.ones(2, 4))
    assert origin_of(follow(nn.Parameter(torch.ones(1)), copied[1].weight)) is None
    origins = take_origins(copied)
    assert {name: origin.name for name, origin in origins.items()} == {
        "0.weight": "0.weight", "0.bias": "0.bias", "1.bias": "0.bias",
    }  # fmt: skip
    assert origins["0.weight"].indices[0].flatten().tolist() == [3, 1]
    assert origins["1.bias"].indices[0].tolist() == [1, 0, 3, 2]
    assert take_origins(copied) == {}
    assert set(take_origins(model)) == {"0.weight", "0.bias", "1.weight", "1.bias"}
