"""Files name operators of other libraries that the code of the model calls, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx.archive.architecture import Architecture
from sparsefx.errors import ArchiveError
from sparsefx.passes.serialize.plain_values import DataError
from sparsefx.passes.serialize.vocabulary import Names, qualified


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    with torch.library._scoped_library("sparsefx_tests", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: 2 * x, "CompositeExplicitAutograd")
        library.define("hidden(Tensor x) -> Tensor")
        library.impl("hidden", lambda x: x, "CompositeExplicitAutograd")
        library.define("write_(Tensor(a!) x) -> Tensor(a!)")
        library.impl("write_", lambda x: x.mul_(2), "CompositeExplicitAutograd")
        yield


class Doubles(nn.Module):
    """It branches on a size, so that only examples let it be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 4:
            raise ValueError("4 features")
        return self.two(torch.ops.sparsefx_tests.double(self.one(x)))

    def unused(self, x: Tensor) -> Tensor:
        return torch.ops.sparsefx_tests.write_(x)


@pytest.mark.filterwarnings("ignore:sparsify. not traced")
def test_an_operator_that_the_models_code_calls_is_saved(tmp_path: Path) -> None:
    compact = sparsefx.export(sparsefx.sparsify(Doubles(), 0.5), (torch.ones(2, 4),))
    sparsefx.save(compact, tmp_path / "model.safetensors")
    loaded = sparsefx.load(tmp_path / "model.safetensors", Doubles())
    assert torch.equal(loaded(torch.ones(3, 4)), compact(torch.ones(3, 4)))


@pytest.mark.parametrize("name", ["hidden", "write_", "nothing", "double.default", "__class__"])
def test_other_operators_are_refused(name: str) -> None:
    architecture = Architecture(Doubles())
    names = Names(tuple, {}, architecture.names_operator)
    assert names.function("torch._ops.sparsefx_tests.double") is torch.ops.sparsefx_tests.double
    with pytest.raises(DataError, match="neither known nor used"):
        names.function(f"torch._ops.sparsefx_tests.{name}")


def test_operators_of_libraries_that_are_written_in_c_have_their_own_names() -> None:
    vision = pytest.importorskip("torchvision.ops")

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offsets, self.one = nn.Conv2d(3, 18, 3, padding=1), nn.Conv2d(3, 8, 1)
            self.deform, self.two = vision.DeformConv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.deform(self.one(x), self.offsets(x)))

    assert qualified(torch.ops.torchvision.deform_conv2d) == "torch._ops.torchvision.deform_conv2d"
    assert Architecture(Deformed()).names_operator("torchvision", "deform_conv2d")
    assert not Architecture(nn.Linear(1, 1)).names_operator("torchvision", "deform_conv2d")


def test_a_deformable_convolution_is_saved(tmp_path: Path) -> None:
    vision = pytest.importorskip("torchvision.ops")
    layers = [vision.DeformConv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)]

    class Deformed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x, x[:, :2])))

    compact = sparsefx.export(Deformed(*layers), (torch.randn(1, 3, 4, 4),))
    path = tmp_path / "model.safetensors"
    sparsefx.save(compact, path)
    loaded = sparsefx.load(path, Deformed(*layers))
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(loaded(x), compact(x))
    with pytest.raises(ArchiveError):
        sparsefx.load(path, nn.Sequential(nn.Linear(1, 1)))
