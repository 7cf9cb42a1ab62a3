"""save and load: the same model back from a file of plain data, and clear errors."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from networks import NETWORKS, build, names
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import sparsefx
from sparsefx import ArchiveError, ArgumentError
from sparsefx.archive.trial import _architectures


def assert_identical(loaded: nn.Module, compact: nn.Module, *inputs: Any) -> None:
    """Same state dict, flags, code, report; bit for bit the same outputs."""
    expected = compact.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.stride() == expected[name].stride()
        assert torch.equal(tensor, expected[name])
    trainable = {name: p.requires_grad for name, p in compact.named_parameters(remove_duplicate=False)}
    assert {name: p.requires_grad for name, p in loaded.named_parameters(remove_duplicate=False)} == trainable
    assert [name for name, _ in loaded.named_modules()] == [name for name, _ in compact.named_modules()]
    assert not any(module.training for module in loaded.modules())
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    if isinstance(compact, fx.GraphModule):
        loaded.graph.lint()
        assert loaded.code == compact.code
    assert loaded.report == copy.deepcopy(loaded).report == copy.deepcopy(compact).report == compact.report
    with torch.no_grad():
        actual, wanted = loaded(*copy.deepcopy(inputs)), compact(*copy.deepcopy(inputs))
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)


def round_trip(model: nn.Module, folder: Path, *inputs: Any, into: nn.Module | None = None) -> nn.Module:
    """Export, save, load into another instance with other weights, compare."""
    compact = sparsefx.export(model, inputs)
    path = folder / "compact.safetensors"
    sparsefx.save(compact, path)
    if into is None:
        into = copy.deepcopy(model)
        for tensor in (*into.parameters(), *into.buffers()):
            tensor.data = torch.zeros_like(tensor)
    before = copy.deepcopy(into.state_dict())
    loaded = sparsefx.load(path, into)
    assert_identical(loaded, compact, *inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in into.state_dict().items())
    assert os.listdir(folder) == [path.name]
    return loaded


@pytest.mark.parametrize("name", names(("mlp", "residual", "dense_net")))
def test_networks(name: str, tmp_path: Path) -> None:
    size = NETWORKS[name][1][0]
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    loaded = round_trip(build(name, "both"), tmp_path, x, into=NETWORKS[name][0]())
    assert loaded(torch.randn(3, 3, size, size, dtype=torch.float64)).shape == (3, 10)


def half_empty(*widths: int) -> nn.Sequential:
    """A multilayer perceptron in float64, the first half of each layer's rows empty."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        model.append(nn.Linear(inputs, outputs)).append(nn.ReLU())
        model[-2].weight.data[: outputs // 2] = 0
    return model[:-1].double()


class Odd(nn.Module):
    """Functional layers, tied weights, a layer called twice, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(10, 6)), nn.Parameter(torch.randn(10), requires_grad=False)
        self.k = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.twice, self.tied, self.out = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 3)
        self.tied.weight = self.twice.weight
        self.conv, self.up = nn.Conv2d(8, 2, 1), nn.Parameter(torch.randn(2, 3, 2, 2))
        self.norm = nn.GroupNorm(2, 4)
        self.scale = torch.tensor(1.5)

    def forward(self, x: Tensor, image: Tensor, flag: bool = False, extra: Tensor | None = None) -> Any:
        h = F.relu(F.linear(x, self.w, self.b))
        h = F.relu(self.tied(F.relu(self.twice(F.relu(self.twice(h))))))
        maps = self.conv(F.conv2d(image, self.k, padding="same", groups=1))
        maps = F.conv_transpose2d(maps, self.up, stride=2)
        if flag:
            maps = maps * 2
        top = maps.flatten(2).topk(2).values
        masked = x.masked_fill(x < 0, -math.inf)[..., None, ::2]
        pooled = F.max_pool2d(maps, 2) + math.sqrt(x.shape[-1])
        shaped = self.norm(image.expand(-1, 4, -1, -1)).to(torch.float32).clamp(min=-0.5)
        return {"out": self.out(h) * self.scale, "all": [maps, top, (masked, pooled)]}, shaped


def odd() -> nn.Module:
    torch.manual_seed(0)
    model = Odd().double()
    with torch.no_grad():
        model.w[:4] = 0
        model.twice.weight[:4] = 0
        model.twice.weight[:, :4] = 0
        model.out.weight[:, :4] = 0
        model.k[:3] = 0
    return model


ODD_INPUTS = (
    torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6),
    torch.linspace(-1, 1, 50, dtype=torch.float64).view(2, 1, 5, 5),
)


def test_functional_layers_tied_weights_and_optional_arguments(tmp_path: Path) -> None:
    loaded = round_trip(odd(), tmp_path, *ODD_INPUTS)
    assert loaded.get_submodule("twice").weight is loaded.get_submodule("tied").weight
    assert loaded.get_submodule("twice").weight.shape == (6, 6)
    made = [name for name, module in loaded.named_modules() if name.endswith("_layer")]
    assert {type(loaded.get_submodule(name)).__name__ for name in made} == {
        "Linear", "Conv2d", "ConvTranspose2d",
    }  # fmt: skip
    with pytest.raises(TypeError, match="'flag' was traced as False"):
        loaded(*ODD_INPUTS, True)
    tensors = safetensors.torch.load_file(tmp_path / "compact.safetensors")
    assert sum("weight" in name and ("twice" in name or "tied" in name) for name in tensors) == 1


class FunctionalNorm(nn.Module):
    """A layer norm of its own parameters, as timm's are."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8))
        self.shift = nn.Parameter(torch.rand(8)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.layer_norm(self.first(x), (8,), self.scale, self.shift, 1e-6))


@pytest.mark.parametrize("bias", [True, False])
def test_norms_that_were_functions(bias: bool, tmp_path: Path) -> None:
    loaded = round_trip(FunctionalNorm(bias).double(), tmp_path, torch.rand(4, 6, dtype=torch.float64))
    norm = loaded.get_submodule("layer_norm_layer")
    assert (norm.bias is not None) == bias
    assert norm.eps == 1e-6


def test_the_loaded_model_is_an_ordinary_one(tmp_path: Path) -> None:
    """It can be copied, pickled, trained, exported and saved once more."""
    loaded = round_trip(odd(), tmp_path, *ODD_INPUTS)
    torch.save(loaded, tmp_path / "pickled.pt")
    for other in (copy.deepcopy(loaded), torch.load(tmp_path / "pickled.pt", weights_only=False)):
        assert torch.equal(other(*ODD_INPUTS)[0]["out"], loaded(*ODD_INPUTS)[0]["out"])
    loaded.train()(*ODD_INPUTS)[0]["out"].sum().backward()
    assert loaded.get_submodule("out").weight.grad is not None
    first = (tmp_path / "compact.safetensors").read_bytes()
    sparsefx.save(loaded, tmp_path / "compact.safetensors")
    assert (tmp_path / "compact.safetensors").read_bytes() == first


class Branch(nn.Module):
    """Does not trace; its recurrent layer keeps its weights twice; not all tensors are in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lstm = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True)
        self.table, self.power = torch.randn(8, dtype=torch.float64), 2
        self.register_buffer("shift", torch.randn(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x) if x.sum() > 0 else -self.layer(x)
        return self.lstm(x[:, None])[0][:, 0] ** self.power + self.table + self.shift


def with_branch() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), Branch(), nn.Linear(8, 2)).double()
    model[0].weight.data[:9] = 0
    return model


def test_a_part_that_stays_python_comes_from_the_users_model(tmp_path: Path) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    loaded = round_trip(with_branch(), tmp_path, x)
    assert type(loaded.get_submodule("3")) is Branch
    assert "3.shift" not in loaded.state_dict()
    other = with_branch()
    other[3].power = 3
    with pytest.raises(ArchiveError, match=r"'power' of '3' was saved as 2, in the model given it is 3"):
        sparsefx.load(tmp_path / "compact.safetensors", other)
    del other[3].lstm
    other[3].power = 2
    with pytest.raises(ArchiveError, match=r"'3.lstm' .* is not in the model given.*pass the model that was"):
        sparsefx.load(tmp_path / "compact.safetensors", other)


class Outer(nn.Module):
    """A user's own model around two graphs, one of them used twice."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.blocks, self.again = nn.ModuleList([first, second]), first
        self.head = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks[1](self.blocks[0](x)) + self.again(x).sum() + self.head.weight.sum())


def test_graphs_inside_a_users_own_model(tmp_path: Path) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    blocks = [half_empty(6, 8, 6), half_empty(6, 8, 4)]
    whole = Outer(*blocks)
    compact = copy.deepcopy(whole)
    compact.blocks[0] = compact.again = sparsefx.export(blocks[0], (x,))
    compact.blocks[1] = sparsefx.export(blocks[1], (x,))
    compact.report = None
    sparsefx.save(compact.eval(), tmp_path / "outer")
    whole.report = None
    loaded = sparsefx.load(tmp_path / "outer", whole)
    assert type(loaded) is Outer
    assert loaded.again is loaded.blocks[0]
    assert isinstance(loaded.again, fx.GraphModule)
    assert_identical(loaded, compact, x)
    assert type(whole.again) is nn.Sequential


def test_into_a_sparsified_model_and_one_without_storage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = half_empty(6, 8, 8, 2)
    sparse = sparsefx.sparsify(dense, 0.5)
    x = torch.randn(3, 6, dtype=torch.float64)
    compact = sparsefx.export(sparse, (x,))
    sparsefx.save(compact, tmp_path / "file")
    with torch.device("meta"):
        hollow = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    untraced = sparsefx.sparsify(dense, 0.5, trace=False)
    for model in (dense, sparse, untraced, hollow, torch.compile(dense, backend="eager")):
        assert_identical(sparsefx.load(tmp_path / "file", model), compact, x)
    assert hollow[0].weight.is_meta


@fx.wrap
def my_own_function(x: Tensor) -> Tensor:
    return x.flip(0) if x.sum() > -1e9 else x


class Wrapped(nn.Module):
    def __init__(self, uses_it: bool = True) -> None:
        super().__init__()
        self.layer, self.uses_it = nn.Linear(4, 4).double(), uses_it

    def forward(self, x: Tensor) -> Tensor:
        return my_own_function(self.layer(x)) if self.uses_it else self.layer(x)


def test_a_users_function_is_found_in_the_users_model_only(tmp_path: Path) -> None:
    round_trip(Wrapped(), tmp_path, torch.randn(3, 4, dtype=torch.float64))
    with pytest.raises(ArchiveError, match=r"my_own_function' is neither known nor used by the model given"):
        sparsefx.load(tmp_path / "compact.safetensors", Wrapped(uses_it=False))


def test_hooks_and_parametrizations_come_from_the_users_model(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), parametrizations.weight_norm(nn.Conv2d(8, 6, 3)), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ).double()
    model[0].weight.data[:4] = 0
    model[3].register_forward_hook(lambda _module, _args, result: result + 1)
    model.register_forward_hook(lambda _module, _args, result: result * 2)
    round_trip(model, tmp_path, torch.randn(2, 3, 9, 9, dtype=torch.float64))
    model._forward_hooks.clear()
    with pytest.raises(ArchiveError, match="module '' had 1 forward hooks when it was saved"):
        sparsefx.load(tmp_path / "compact.safetensors", model)


def test_types_and_memory_orders(tmp_path: Path) -> None:
    """bfloat16 and complex numbers; channels last; two tensors in one storage; nothing left of a layer."""
    model, x = build("vgg16_bn", "both").to(torch.float32), torch.randn(2, 3, 32, 32)
    compact = sparsefx.export(model, (x,), gather="never").to(memory_format=torch.channels_last)
    sparsefx.save(compact, tmp_path / "compact.safetensors")
    loaded = sparsefx.load(tmp_path / "compact.safetensors", model)
    assert_identical(loaded, compact, x)
    assert loaded.get_submodule("0").weight.is_contiguous(memory_format=torch.channels_last)
    round_trip(half_empty(4, 6, 2).to(torch.bfloat16), tmp_path, torch.randn(2, 4, dtype=torch.bfloat16))
    model = nn.Sequential(*(nn.Linear(*shape, dtype=torch.complex128) for shape in ((4, 6), (6, 2))))
    round_trip(model, tmp_path, torch.randn(2, 4, dtype=torch.complex128))
    model = half_empty(4, 4, 4)
    both = torch.randn(8, 4, dtype=torch.float64)
    model[0].weight.data, model[2].weight.data = both[:4], both[4:].mT
    round_trip(model, tmp_path, torch.randn(2, 4, dtype=torch.float64))
    round_trip(build("lenet5", "everything"), tmp_path, torch.randn(2, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize("kept", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_last_with_a_single_channel(kept: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Its strides along the single index say channels last all the same, and torch's kernels go by them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    model[0].weight.data[kept:] = 0
    model = model.to(dtype, memory_format=torch.channels_last).eval()
    compact = sparsefx.export(model, (torch.randn(2, 1, 9, 9, dtype=dtype),))
    sparsefx.save(compact.to(memory_format=torch.channels_last), tmp_path / "file")
    assert_identical(sparsefx.load(tmp_path / "file", model), compact, torch.randn(2, 1, 9, 9, dtype=dtype))


def test_the_file_is_plain_safetensors_and_always_the_same(tmp_path: Path) -> None:
    compact = sparsefx.export(half_empty(6, 8, 2), (torch.randn(1, 6, dtype=torch.float64),))
    for name in ("one", "two"):
        sparsefx.save(compact, tmp_path / name)
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    for name, tensor in safetensors.torch.load(content).items():
        assert torch.equal(tensor, compact.state_dict()[name])
    length = int.from_bytes(content[:8], "little")
    plan = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["sparsefx"])
    assert plan["sparsefx"] == sparsefx.__version__
    assert plan["report"]["parameters_after"] == compact.report.parameters_after


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    compact = sparsefx.export(half_empty(6, 8, 2), (torch.randn(1, 6, dtype=torch.float64),))
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*missing'"):
        sparsefx.save(compact, tmp_path / "missing" / "file")


def test_a_file_is_readable_to_whom_the_folder_makes_files_readable(tmp_path: Path) -> None:
    compact = sparsefx.export(half_empty(6, 8, 2), (torch.randn(1, 6, dtype=torch.float64),))
    (tmp_path / "other").touch()
    sparsefx.save(compact, tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compact = sparsefx.export(half_empty(6, 8, 2), (torch.randn(1, 6, dtype=torch.float64),))
    sparsefx.save(compact, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        sparsefx.save(compact, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == before


def fails(*_: object) -> None:
    raise OSError("no space")


def other_class() -> nn.Module:
    model = half_empty(6, 8, 2)
    model[1] = nn.GELU()
    return model


def other_arguments() -> nn.Module:
    class TwoInputs(nn.Sequential):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x + y)

    return TwoInputs(*half_empty(6, 8, 2))


OTHER_MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "narrower": (
        lambda: half_empty(6, 2, 2),
        r"tensor '0.weight' is \(\d, 6\), in the model given it is \(2, 6\)",
    ),
    "shorter": (lambda: half_empty(6, 8)[:1], "module '1' .* is not in the model given"),
    "other class": (other_class, r"module '1' is a torch\S+ReLU, in the model given a torch\S+GELU"),
    "no layers": (nn.Module, "module '1' .* is not in the model given"),
    "other arguments": (other_arguments, r"takes \['input.*'\], in the model given \['x', 'y'\]"),
}


@pytest.mark.parametrize("which", OTHER_MODELS)
def test_other_models_are_refused(which: str, tmp_path: Path) -> None:
    other, message = OTHER_MODELS[which]
    compact = sparsefx.export(half_empty(6, 8, 2), (torch.randn(1, 6, dtype=torch.float64),))
    sparsefx.save(compact, tmp_path / "file")
    with pytest.raises(ArchiveError, match=rf"file cannot be loaded: .*{message}.*pass the model that was"):
        sparsefx.load(tmp_path / "file", other())


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ArgumentError, match=r"compact must be a torch.nn.Module, got int"):
        sparsefx.save(3, path)
    with pytest.raises(ArgumentError, match=r"is a Linear without a graph; save what sparsefx.export"):
        sparsefx.save(nn.Linear(2, 2), path)
    with pytest.raises(ArgumentError, match=r"is a sparsified model; save what sparsefx.export"):
        sparsefx.save(sparsefx.sparsify(nn.Sequential(nn.Linear(4, 4)), 0.5), path)
    compact = sparsefx.export(half_empty(6, 8, 2), (torch.randn(1, 6, dtype=torch.float64),))
    unsupported = copy.deepcopy(compact)
    last = next(iter(reversed(unsupported.graph.nodes)))
    last.args = ((last.args[0], range(3)),)
    with pytest.raises(
        ArchiveError, match=r"node 'output': a value of type range cannot be saved.*torch.save"
    ):
        sparsefx.save(unsupported, path)
    with pytest.raises(ArchiveError, match=r"0.weight has no values to save"):
        sparsefx.save(copy.deepcopy(compact).to("meta"), path)
    with pytest.raises(ArgumentError, match="model must be the exported model's architecture, got str"):
        sparsefx.load(path, "model")
    with pytest.raises(FileNotFoundError):
        sparsefx.load(path, nn.Linear(2, 2))
    assert not os.listdir(tmp_path)


def test_what_the_newer_passes_make(tmp_path: Path) -> None:
    """Attention taken apart, a fused projection split, norms with constants, gathers and scatters."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = self.norm(x)
            x = x + self.attention(y, y, y, key_padding_mask=mask)[0]
            batch, steps, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, steps, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return x + self.proj(y.transpose(1, 2).reshape(batch, steps, 8))

    model = nn.Module()
    model = Block().double()
    with torch.no_grad():
        model.qkv.weight[::3] = 0
        model.proj.weight[:2] = 0
        model.attention.out_proj.weight[:3] = 0
    x, mask = torch.randn(2, 5, 8, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    loaded = round_trip(model, tmp_path, x, mask)
    assert any(name.endswith("q_proj") for name, _ in loaded.named_modules())
    assert any(name.endswith("qkv_0") for name, _ in loaded.named_modules())


def test_a_transformer_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2)).double().eval()
    round_trip(model, tmp_path, torch.randn(2, 5, 6, dtype=torch.float64))


class Output(OrderedDict):  # type: ignore[type-arg]
    """A result of the kind that Hugging Face models return."""


class Pair(NamedTuple):
    out: Tensor
    hidden: Tensor


class Body(nn.Module):
    """A forward given as a function, which only traces along examples: it walks over chunks."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.up, self.down, self.run = nn.Linear(4, 8), nn.Linear(8, 4), run
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        nn.init.zeros_(self.up.weight[::2].detach())

    def body(self, x: Tensor) -> Tensor:
        first, second = (part for part in self.down(F.relu(self.up(x))).chunk(2, -1))
        return torch.cat([second, first], -1)

    def forward(self, x: Tensor, *rest: Tensor, **more: Any) -> Any:
        return self.run(self, x, *rest, **more)


def packed(m: Body, x: Tensor, lengths: Tensor) -> Any:
    result, state = m.recurrent(pack_padded_sequence(m.body(x), lengths, batch_first=True))
    return pad_packed_sequence(result, batch_first=True)[0], state


def branching(m: Body, x: Tensor) -> Tensor:
    return m.part(x, scale=2.0) if x.sum() < 1e9 else x


def with_new_tensors(m: Body, x: Tensor) -> Tensor:
    scale = 2 if x.device.type == "cpu" else 1
    return m.body(x) * x.new_ones(4) + x.new_full((4,), scale) + x.new_zeros(4)


FORWARDS: dict[str, Callable[..., Any]] = {
    "keywords": lambda m, x, **more: m.body(x) * more.get("scale", 1),
    "keywords of a part": branching,
    "a class of results": lambda m, x: Output(out=m.body(x)),
    "an ordered dict": lambda m, x: OrderedDict(out=m.body(x)),
    "a named tuple": lambda m, x: Pair(m.body(x), x),
    "checkpoint": lambda m, x: checkpoint(m.body, x, use_reentrant=False),
    "checkpoint of old": lambda m, x: checkpoint(m.body, x, use_reentrant=True),
    "new tensors": with_new_tensors,
    "packed": packed,
}


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.filterwarnings("ignore:export", "ignore:None of the inputs have requires_grad")
def test_forwards_that_only_trace_along_examples(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Body(FORWARDS[name])
    if name == "keywords of a part":
        model.part = Body(FORWARDS["keywords"])
    if name == "checkpoint":
        model.part = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        model.run = lambda m, x: checkpoint(m.part, x, use_reentrant=False)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    round_trip(model.double().eval(), tmp_path, x, *([torch.tensor([5, 3, 2])] if name == "packed" else []))


@fx.wrap
def decides(x: Tensor) -> Tensor:
    return x if x.sum() < 1e9 else -x


def test_a_load_is_tried_before_a_file_is_replaced(tmp_path: Path) -> None:
    """A function that loading would not find: the model traces along examples alone."""
    torch.manual_seed(0)
    model = Body(lambda m, x: decides(m.body(x))).double().eval()
    compact = sparsefx.export(model, (torch.randn(3, 4, dtype=torch.float64),))
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(
        ArchiveError, match=r"saved to .*: .*decides' is neither known nor .*; torch.save keeps"
    ):
        sparsefx.save(compact, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_trial_knows_goes_with_the_model(tmp_path: Path) -> None:
    compact = sparsefx.export(half_empty(6, 8, 2), (torch.randn(1, 6, dtype=torch.float64),))
    assert compact in _architectures
    unknown = copy.deepcopy(compact)
    assert unknown not in _architectures
    sparsefx.save(unknown, tmp_path / "file")  # untried
    architecture = weakref.ref(_architectures[compact])
    del compact
    gc.collect()
    assert architecture() is None


def test_an_activation_that_parts_of_a_model_share(tmp_path: Path) -> None:
    class Part(nn.Module):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            self.first, self.activation, self.last = nn.Linear(4, 8), activation, nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.activation(self.first(x)))

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            activation = nn.SiLU()
            self.one, self.other = Part(activation), Part(activation)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return self.other(y) if y.sum() < 1e9 else y

    model, x = Parts(), torch.randn(2, 4)
    with pytest.warns(UserWarning, match="stays Python"):
        compact = sparsefx.export(model, (x,))
    sparsefx.save(compact, tmp_path / "net")
    assert torch.equal(sparsefx.load(tmp_path / "net", Parts())(x), compact(x))
