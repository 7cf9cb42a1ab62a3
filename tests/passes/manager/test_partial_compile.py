"""Models whose own forward stays Python: what they call is compiled, each part for itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import sparsefx


class Block(nn.Module):
    """Two layers; half of the first one's rows are empty."""

    def __init__(self, width: int = 8, size: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(size, width), nn.Linear(width, size)
        self.scale = 3
        with torch.no_grad():
            self.first.weight[::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


class Root(nn.Module):
    """A forward that no graph can replay, because it looks at the data."""

    def __init__(self, run: Callable[[Any, Tensor], Any], *parts: nn.Module) -> None:
        super().__init__()
        self.run, self.parts = run, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x if bool(x.abs().sum() >= 0) else -x)


def exported(root: nn.Module, *xs: Tensor) -> nn.Module:
    """An export in parts that computes the same on all inputs."""
    root = root.double().eval()
    with pytest.warns(UserWarning, match="compiled.*, because its forward stays Python"):
        compact = sparsefx.export(root, xs[:1])
    for x in xs:
        expected, actual = root(x), compact(x)
        for one, other in zip(pytree.tree_leaves(expected), pytree.tree_leaves(actual), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-11)
        assert type(actual) is type(expected)
    return compact


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_the_parts_of_a_root_that_does_not_trace() -> None:
    torch.manual_seed(0)
    compact = exported(Root(lambda m, x: m.parts[1](m.parts[0](x)), Block(), Block()), x(2, 4), x(5, 4))
    assert [part.first.out_features for part in compact.parts] == [4, 4]
    assert all(isinstance(part, fx.GraphModule) for part in compact.parts)
    assert [part.name for part in compact.report.opaque] == [""]
    assert compact.parts[0].scale == 3  # the parent may read it


def test_a_part_that_is_called_at_several_sizes() -> None:
    torch.manual_seed(0)
    run = lambda m, x: m.parts[0](x[:, :2]).sum(1) + m.parts[0](x).sum(1) + m.parts[0](x[0, 0])  # noqa: E731
    compact = exported(Root(run, Block()), x(2, 5, 4), x(3, 9, 4))
    assert not isinstance(compact.parts[0], Block) or compact.parts[0].first.out_features == 8


def test_a_part_that_shares_a_parameter_with_the_outside() -> None:
    torch.manual_seed(0)
    block, tied = Block(), nn.Linear(4, 8)
    tied.weight = block.first.weight
    compact = exported(Root(lambda m, x: m.parts[0](x).sum(1) + m.parts[1](x).sum(1), block, tied), x(3, 4))
    assert compact.parts[1].weight.shape == (8, 4)  # read outside of the part: cut there alone


def test_a_part_that_nobody_cut_keeps_its_own_parameters() -> None:
    torch.manual_seed(0)
    block, tied = Block(), nn.Linear(4, 8)
    nn.init.normal_(block.first.weight)
    tied.weight = block.first.weight
    compact = exported(Root(lambda m, x: m.parts[0](x).sum(1) + m.parts[1](x).sum(1), block, tied), x(3, 4))
    assert compact.parts[1].weight is compact.parts[0].first.weight


class Arguments(Block):
    def forward(
        self, x: Tensor, shift: Tensor | None = None, negate: bool = False, *, gain: Any = None
    ) -> Any:
        h = super().forward(x)
        h = h if shift is None else h + shift
        h = h if gain is None else h * gain
        return -h if negate else h


CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "keywords": lambda m, x: m.parts[0](x, gain=x.sigmoid(), shift=x),
    "none": lambda m, x: m.parts[0](x, None, gain=None),
    "bool": lambda m, x: m.parts[0](x, negate=True),
    "tensor after a default": lambda m, x: m.parts[0](x, None, True, gain=x),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_a_part(name: str) -> None:
    torch.manual_seed(0)
    compact = exported(Root(CALLS[name], Arguments()), x(2, 4), x(6, 4))
    assert compact.parts[0].first.out_features == 4


@dataclass
class Result:
    """What some libraries return."""

    hidden: Tensor
    logits: Tensor | None = None


class ReturnsDict(Block):
    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.first(x))
        return OrderedDict(hidden=h, out=self.last(h))


class ReturnsDataclass(Block):
    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.first(x))
        return Result(h, self.last(h))


class ReturnsNested(Block):
    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.first(x))
        return {"pair": (self.last(h), [x, None]), "size": 3}


def test_a_part_that_returns_an_ordered_dict() -> None:
    torch.manual_seed(0)
    run = lambda m, x: OrderedDict(out=m.parts[0](x)["out"] + x)  # noqa: E731
    compact = exported(Root(run, ReturnsDict()), x(2, 4))
    assert isinstance(compact.parts[0](x(2, 4)), OrderedDict)
    assert compact.parts[0].first.out_features == 8  # its width is an output


def test_a_part_that_returns_nested_containers() -> None:
    torch.manual_seed(0)
    compact = exported(Root(lambda m, x: m.parts[0](x)["pair"][0], ReturnsNested()), x(2, 4))
    assert compact.parts[0].first.out_features == 4


def test_a_part_that_returns_a_dataclass() -> None:
    torch.manual_seed(0)
    root = Root(lambda m, x: m.parts[0](x).logits, ReturnsDataclass()).double().eval()
    example = x(2, 4)
    with pytest.warns(UserWarning, match="its forward stays Python"):
        compact = sparsefx.export(root, (example,))
    torch.testing.assert_close(compact(example), root(example))
    assert isinstance(compact.parts[0](example), Result)


def test_a_part_with_an_opaque_module_inside() -> None:
    torch.manual_seed(0)
    inner = Root(lambda m, x: m.parts[0](x), Block())
    model = nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2)).double().eval()
    example = x(2, 4)
    compact = sparsefx.export(model, (example,))
    torch.testing.assert_close(compact(example), model(example))
    assert [part.name for part in compact.report.opaque] == ["1"]
    assert compact.get_submodule("1").parts[0].first.out_features == 4


def test_a_module_that_is_never_called_stays() -> None:
    torch.manual_seed(0)
    compact = exported(Root(lambda m, x: m.parts[0](x), Block(), Block()), x(2, 4))
    assert isinstance(compact.parts[1], Block)
