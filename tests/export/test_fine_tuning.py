"""Training on after an export: the graph follows the mode, and the optimizer goes on where it was."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, build, names, relative_difference
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

import sparsefx
from sparsefx import ArgumentError
from sparsefx.masking.masks import masked_weights

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.003, amsgrad=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.003, weight_decay=0.1),
}


class ConvNet(nn.Module):
    """Convolutions with BatchNorm, a residual connection and a linear head.

    No bias stands before a BatchNorm: its gradient is rounding alone, which Adam scales up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv3 = nn.Conv2d(10, 10, 1)
        self.fc1, self.bn3, self.fc2 = nn.Linear(10, 12, bias=False), nn.BatchNorm1d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = x + self.conv3(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc2(torch.tanh(self.bn3(self.fc1(x))))


def masked_conv_net() -> tuple[nn.Module, Tensor]:
    """Whole channels masked: their rows, and the columns that read them; all else is active."""
    torch.manual_seed(0)
    model = sparsefx.sparsify(ConvNet().double(), density=1.0)
    masks = {m.name: torch.ones_like(m.mask) for m in masked_weights(model)}
    masks["conv1"][[1, 4, 6]] = False
    masks["conv2"][:, [1, 4, 6]] = False
    for name in ("conv2", "conv3"):
        masks[name][[0, 7]] = False
    for name in ("conv3", "fc1"):
        masks[name][:, [0, 7]] = False
    masks["fc1"][3:6] = False
    masks["fc2"][:, 3:6] = False
    with torch.no_grad():
        model.get_parameter("conv3.bias")[[0, 7]] = 0
    for masked in masked_weights(model):
        masked.set_mask(masks[masked.name])
    return model, torch.randn(6, 3, 7, 7, dtype=torch.float64)


class Encoder(nn.Module):
    """A transformer layer with dropout on everything."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inputs = nn.Linear(5, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, dropout, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.inputs(x)))


def masked_encoder(dropout: float = 0.0) -> tuple[nn.Module, Tensor]:
    """Dimensions of heads empty at different places of each head, and neurons of the feed-forward part."""
    torch.manual_seed(0)
    model = sparsefx.sparsify(Encoder(dropout).double(), density=1.0)
    empty = torch.tensor([0, 5, 10, 15])  # the first of head 0, the second of head 1, ...
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for part in range(3):
            parameters["layer.self_attn.in_proj_weight"][empty + 16 * part] = 0
        parameters["layer.self_attn.in_proj_bias"].normal_()
        for part in range(3):
            parameters["layer.self_attn.in_proj_bias"][empty + 16 * part] = 0
    masks = {m.name: torch.ones_like(m.mask) for m in masked_weights(model)}
    masks["layer.self_attn.out_proj"][:, empty] = False
    masks["layer.linear1"][5:11] = False
    masks["layer.linear2"][:, 5:11] = False
    for masked in masked_weights(model):
        masked.set_mask(masks[masked.name])
    return model, torch.randn(4, 6, 5, dtype=torch.float64)


class Fused(nn.Module):
    """Attention as vision transformers write it: one projection for all three, dropout by a number."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.qkv, self.proj, self.p = nn.Linear(12, 36), nn.Linear(12, 12), p

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


def masked_fused(p: float = 0.0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = sparsefx.sparsify(Fused(p).double(), density=1.0)
    qkv, proj = masked_weights(model)
    rows, columns = torch.ones_like(qkv.mask), torch.ones_like(proj.mask)
    empty = torch.tensor([1, 6, 8])
    for part in range(3):
        rows[empty + 12 * part] = False
        model.get_parameter("qkv.bias").data[empty + 12 * part] = 0
    columns[:, empty] = False
    qkv.set_mask(rows)
    proj.set_mask(columns)
    return model, torch.randn(2, 5, 12, dtype=torch.float64)


def train(model: nn.Module, optimizer: Optimizer, x: Tensor, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        optimizer.zero_grad()
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        model(x + noise).square().mean().backward()
        optimizer.step()


def assert_restricted(compact: nn.Module, model: nn.Module, tolerance: float = 1e-9) -> None:
    """Every parameter of the compact model is that of the original at the indices that are kept."""
    for name, parameter in compact.named_parameters():
        if name in compact.origins:
            origin = compact.origins[name]
            expected = origin.cut(model.get_parameter(origin.name))
            torch.testing.assert_close(parameter.detach(), expected, rtol=tolerance, atol=tolerance)


def in_groups(model: nn.Module) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.dim() > 1]
    return [
        {"params": weights, "lr": 0.01},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]


def _trained() -> list[Any]:
    """Every optimizer on both networks; of the encoder, the quick run trains with AdamW alone."""
    makers = {"conv_net": masked_conv_net, "encoder": masked_encoder}
    return [
        pytest.param(
            make,
            kind,
            marks=[] if name == "conv_net" or kind == "adamw" else pytest.mark.slow,
            id=f"{name}-{kind}",
        )
        for name, make in makers.items()
        for kind in OPTIMIZERS
    ]


@pytest.mark.parametrize(("make", "kind"), _trained())
def test_steps_on_the_compact_model_are_those_on_the_original(make: Any, kind: str) -> None:
    model, x = make()
    optimizer = sparsefx.SparseMomentum(OPTIMIZERS[kind](in_groups(model)), model, cycles=5)
    train(model.train(), optimizer, x, 4)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert_restricted(compact, model, 0.0)
    small = optimizer.compact(compact)
    assert type(small) is type(optimizer._optimizer)
    assert count(compact) < 0.8 * count(model)
    train(model.train(), optimizer, x, 5)
    train(compact.train(), small, x, 5)
    assert_restricted(compact, model)
    assert relative_difference(compact(x), model(x)) <= 1e-9
    assert relative_difference(compact.eval()(x), model.eval()(x)) <= 1e-9


def test_projections_lose_their_dimensions_and_keep_their_places() -> None:
    """What was one parameter is three, reordered inside each head, and the state with them."""
    model, x = masked_encoder()
    optimizer = sparsefx.SparseMomentum(torch.optim.Adam(model.parameters(), lr=1e-3), model, cycles=5)
    train(model.train(), optimizer, x, 3)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    names = [f"layer.self_attn.{part}_proj.weight" for part in "qkv"]
    kept = [index for index in range(16) if index not in (0, 5, 10, 15)]
    state = optimizer.compact(compact).state
    old = optimizer.state[model.get_parameter("layer.self_attn.in_proj_weight")]
    for part, name in enumerate(names):
        origin, parameter = compact.origins[name], compact.get_parameter(name)
        assert origin.name == "layer.self_attn.in_proj_weight"
        assert sorted(origin.indices[0].flatten().tolist()) == [index + 16 * part for index in kept]
        assert torch.equal(state[parameter]["exp_avg"], old["exp_avg"][origin.indices[0].flatten()])
        assert state[parameter]["step"] == old["step"] == 3


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_fused_projection_is_split_with_its_state(kind: str) -> None:
    model, x = masked_fused()
    optimizer = sparsefx.SparseMomentum(OPTIMIZERS[kind](model.parameters()), model, cycles=5)
    train(model, optimizer, x, 3)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert [tuple(compact.get_parameter(f"qkv_{part}.weight").shape) for part in range(3)] == [(9, 12)] * 3
    small = optimizer.compact(compact)
    train(model, optimizer, x, 3)
    train(compact, small, x, 3)
    assert_restricted(compact, model)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_groups_that_lose_other_channels_each(kind: str) -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1)]
    model = sparsefx.sparsify(nn.Sequential(*convs).double(), density=1.0)
    masks = {m.name: m for m in masked_weights(model)}
    inputs, outputs = torch.tensor([1, 6]), torch.tensor([0, 3, 4, 5])
    keep = {name: torch.ones_like(masked.mask) for name, masked in masks.items()}
    keep["0"][inputs] = keep["1"][outputs] = False
    keep["1"][:4, 1] = keep["1"][4:, 2] = keep["2"][:, outputs] = False
    for name, masked in masks.items():
        masked.set_mask(keep[name])
    model.get_parameter("0.bias").data[inputs] = 0
    x = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    optimizer = sparsefx.SparseMomentum(OPTIMIZERS[kind](model.parameters()), model, cycles=5)
    train(model, optimizer, x, 3)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert tuple(compact.get_parameter("1.weight").shape) == (4, 3, 3, 3)
    small = optimizer.compact(compact)
    train(model, optimizer, x, 3)
    train(compact, small, x, 3)
    assert_restricted(compact, model)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", names(("lenet5", "residual", "dense_net")))
def test_export_without_folding_computes_the_same_function_and_trains(name: str) -> None:
    sizes = NETWORKS[name][1]
    model = build(name, "both")
    x = torch.randn(2, 3, sizes[0], sizes[0], dtype=torch.float64)
    with warnings.catch_warnings():
        if name == "googlenet":
            warnings.filterwarnings("ignore", message="export: the model does in training what it does in")
        compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    for size in sizes:
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            assert relative_difference(compact(x), model(x)) <= 1e-11
    assert count(compact) < count(model)
    assert set(compact.origins) <= {name for name, _ in compact.named_parameters()}
    norms = [module for module in compact.modules() if isinstance(module, _BatchNorm)]
    assert bool(norms) == any(isinstance(module, _BatchNorm) for module in model.modules())
    before = [norm.running_mean.clone() for norm in norms]
    compact.train()(x).sum().backward()
    assert not any(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))


class Dropped(nn.Module):
    """Dropout in every way that a model may write it."""

    def __init__(self, ways: tuple[str, ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)
        self.module, self.depth, self.ways = nn.Dropout(0.5), StochasticDepth(), ways

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if "module" in self.ways:
            x = self.module(x)
        if "functional" in self.ways:
            x = F.dropout(x, 0.5, self.training)
        if "keyword" in self.ways:
            x = F.dropout(x, p=0.5 if self.training else 0.0)
        if "depth" in self.ways:
            x = x + self.depth(x)
        return self.last(x)


class StochasticDepth(nn.Module):
    """Drops whole samples in training; no node is left of it in the graph of evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0], 1)).bernoulli_(0.5)
        return x * keep / 0.5


@pytest.mark.parametrize("sparsified", [False, True], ids=["plain", "sparsified"])
@pytest.mark.parametrize("way", ["module", "functional", "keyword", "depth"])
def test_dropout_follows_the_mode(way: str, sparsified: bool) -> None:
    torch.manual_seed(0)
    model = Dropped((way,)).double()
    if sparsified:
        model = sparsefx.sparsify(model, density=1.0)
    model.get_parameter("last.weight").data[:, 3:6] = 0
    if sparsified:
        model.get_submodule("last").mask[:, 3:6] = False
    x = torch.randn(5, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert compact.get_submodule("first").out_features == 13
    assert torch.equal(compact(x), compact(x))
    assert relative_difference(compact(x), model.eval()(x)) <= 1e-11
    compact.train()
    assert not torch.equal(compact(x), compact(x))
    if way != "depth":  # the same noise would need the same width
        mean = torch.stack([compact(x) for _ in range(2000)]).mean(0)
        assert relative_difference(mean, compact.eval()(x)) <= 0.2
    assert not sparsefx.export(model, (x,)).train()(x).isnan().any()


@pytest.mark.parametrize("make", [masked_encoder, masked_fused], ids=["encoder", "fused"])
def test_attention_drops_out_in_training(make: Any) -> None:
    model, x = make(0.3)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert "dropout_p = 0.3" in compact.train().code
    assert not torch.equal(compact(x), compact(x))
    assert "dropout_p = 0.0" in compact.eval().code
    assert relative_difference(compact(x), model.eval()(x)) <= 1e-11


def test_a_model_whose_forward_stays_python() -> None:
    """Its parts are graphs that follow the mode, each for itself."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() > 0 else x

    torch.manual_seed(0)
    model = sparsefx.sparsify(Branching().double(), density=1.0, trace=False)
    masks = {m.name: m for m in masked_weights(model)}
    masks["body.0"].set_mask((torch.arange(8) > 2)[:, None].expand(8, 4))
    masks["body.3"].set_mask((torch.arange(8) > 2).expand(4, 8))
    x = torch.rand(5, 4, dtype=torch.float64)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=3)
    train(model, optimizer, x, 2)
    with pytest.warns(UserWarning, match="part of it was compiled"):
        compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert compact.origins["body.3.weight"].indices[1].flatten().tolist() == [3, 4, 5, 6, 7]
    assert not torch.equal(compact.train()(x), compact(x))
    small = optimizer.compact(compact)
    state = small.state[compact.get_parameter("body.3.weight")]["momentum_buffer"]
    assert torch.equal(state, sgd.state[model.get_parameter("body.3.weight")]["momentum_buffer"][:, 3:])


def test_what_only_training_computes_is_left_out_and_named() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.aux = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            x = F.dropout(self.first(x), 0.5, self.training)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    model = Auxiliary()
    x = torch.randn(2, 4)
    with pytest.warns(UserWarning, match="in training what it does in evaluation.*it returns something else"):
        compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert compact.report.as_dict()["as_in_evaluation"] == (
        {"name": "", "what": "it returns something else"},
    )
    assert "the model trains otherwise: it returns something else" in str(compact.report)
    assert not torch.equal(compact.train()(x), compact(x))  # it drops out all the same


def test_a_batchnorm_that_the_model_keeps_frozen_stays_so() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.free = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.free(self.bn(self.conv(x)))

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.bn.eval()
            return self

    model, x = Frozen(), torch.randn(2, 3, 4, 4)
    for source in (model, sparsefx.sparsify(model, 0.5)):
        compact = sparsefx.export(source, (x,), fold_batchnorm=False).train()
        modes = {name: compact.get_submodule(name).training for name in ("conv", "bn", "free")}
        assert modes == {"conv": True, "bn": False, "free": True}


def exported() -> tuple[nn.Module, sparsefx.SparseMomentum, nn.Module, Tensor]:
    model, x = masked_conv_net()
    optimizer = sparsefx.SparseMomentum(torch.optim.AdamW(in_groups(model)), model, cycles=5)
    train(model.train(), optimizer, x, 2)
    return model, optimizer, sparsefx.export(model, (x,), fold_batchnorm=False), x


def test_groups_keep_their_members_and_options_and_the_state_dict_loads() -> None:
    model, optimizer, compact, x = exported()
    small = optimizer.compact(compact)
    for group, original in zip(small.param_groups, optimizer.param_groups, strict=True):
        options = [{k: v for k, v in g.items() if k != "params"} for g in (group, original)]
        assert options[0] == options[1]
        assert {p.dim() > 1 for p in group["params"]} == {p.dim() > 1 for p in original["params"]}
    held = [parameter for group in small.param_groups for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in compact.parameters()}
    assert small.defaults == optimizer.defaults
    other = copy.deepcopy(compact)
    again = optimizer.compact(other)
    again.load_state_dict(copy.deepcopy(small.state_dict()))
    train(compact.train(), small, x, 2)
    train(other.train(), again, x, 2)
    for one, its in zip(compact.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, its)
    before = optimizer.state[model.get_parameter("fc2.weight")]["exp_avg"]
    assert not torch.equal(before[:, :3], small.state[compact.get_parameter("fc2.weight")]["exp_avg"][:, :3])


def test_origins_survive_a_copy_and_a_file() -> None:
    _, optimizer, compact, x = exported()
    file = io.BytesIO()
    torch.save(compact, file)
    file.seek(0)
    for same in (copy.deepcopy(compact), torch.load(file, weights_only=False)):
        small = optimizer.compact(same)
        train(same.train(), small, x, 1)
        assert len(small.state) == len(list(same.parameters()))
        assert relative_difference(compact.eval()(x), same.eval()(x)) > 0
    assert not any(parameter.__dict__ for parameter in compact.parameters())


def test_names_of_parameters_follow() -> None:
    model, x = masked_conv_net()
    sgd = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    (group,) = sparsefx.SparseMomentum(sgd, model, cycles=2).compact(compact).param_groups
    assert sorted(group["param_names"]) == sorted(name for name, _ in compact.named_parameters())


def test_a_bias_that_export_made_trains_with_its_weight() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2, bias=False)]
    model = sparsefx.sparsify(nn.Sequential(*layers).double(), density=1.0)
    masked_weights(model)[0].set_mask((torch.arange(6) > 1)[:, None].expand(6, 4))
    x = torch.randn(3, 4, dtype=torch.float64)
    adam = torch.optim.Adam(model.parameters())
    optimizer = sparsefx.SparseMomentum(adam, model, cycles=2)
    train(model, optimizer, x, 2)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert set(compact.origins) == {"0.weight", "0.bias", "2.weight"}
    small = optimizer.compact(compact)
    bias = compact.get_parameter("2.bias")
    assert any(bias is parameter for parameter in small.param_groups[0]["params"])
    assert bias not in small.state
    train(compact, small, x, 1)


def test_frozen_parameters_stay_frozen_and_out_of_the_optimizer() -> None:
    model, x = masked_encoder()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" not in name)
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    optimizer = sparsefx.SparseMomentum(adam, model, cycles=2)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    for name, parameter in compact.named_parameters():
        assert parameter.requires_grad == ("self_attn" not in name)
    held = {id(p) for group in optimizer.compact(compact).param_groups for p in group["params"]}
    assert held == {id(p) for p in compact.parameters() if p.requires_grad}


def test_factored_state_is_cut_and_other_state_starts_anew() -> None:
    model, x = masked_conv_net()
    optimizer = sparsefx.SparseMomentum(torch.optim.Adafactor(model.parameters()), model, cycles=2)
    train(model.train(), optimizer, x, 1)
    compact = sparsefx.export(model, (x,), fold_batchnorm=False)
    small = optimizer.compact(compact)
    state = small.state[compact.get_parameter("fc2.weight")]
    old = optimizer.state[model.get_parameter("fc2.weight")]
    kept = [0, 1, 2, *range(6, 12)]
    assert torch.equal(state["col_var"], old["col_var"][:, kept])
    assert torch.equal(state["row_var"], old["row_var"])
    train(compact.train(), small, x, 1)
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=2)
    optimizer = sparsefx.SparseMomentum(lbfgs, model, cycles=2)

    def loss(of: nn.Module) -> Any:
        of.zero_grad()
        result = of(x).square().sum()
        result.backward()
        return result

    optimizer.step(lambda: loss(model))
    with pytest.warns(UserWarning, match=r"LBFGS starts anew for conv1.weight: its d does not have"):
        small = optimizer.compact(compact)
    assert not small.state
    small.step(lambda: loss(compact))


def test_wrong_models() -> None:
    model, optimizer, compact, x = exported()
    with pytest.raises(ArgumentError, match=r"compact does not say .* fold_batchnorm=False"):
        optimizer.compact(sparsefx.export(model, (x,)))
    with pytest.raises(ArgumentError, match=r"compact must be the model .*, not tuple"):
        optimizer.compact((x,))
    other = sparsefx.sparsify(nn.Sequential(nn.Flatten(), nn.Linear(3 * 49, 2)).double(), 0.5)
    with pytest.raises(ArgumentError, match=r"another model: its parameter '1.weight' of shape \(2, 147\)"):
        optimizer.compact(sparsefx.export(other, (x,), fold_batchnorm=False))
    changed = copy.deepcopy(compact)
    changed.get_submodule("fc2").weight = nn.Parameter(torch.ones(4, 2, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"'fc2.weight' was given another shape"):
        optimizer.compact(changed)


def test_gathered_layers_know_their_origins() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.branch(x))

    torch.manual_seed(0)
    model, x = Stream().double(), torch.randn(3, 4, dtype=torch.float64)
    model.branch.weight.data[[1, 5]] = 0
    model.branch.weight.data[:, [0, 2, 6]] = 0
    compact = sparsefx.export(model, (x,), fold_batchnorm=False, gather="always")
    assert tuple(compact.get_parameter("branch.weight").shape) == (6, 5)
    assert_restricted(compact, model, 0.0)
    kept = sparsefx.export(model, (x,), fold_batchnorm=False)
    assert tuple(kept.get_parameter("branch.weight").shape) == (8, 8)  # all of it can learn


def test_after_fine_tuning_it_is_exported_once_more_and_saved(tmp_path: Path) -> None:
    model, optimizer, compact, x = exported()
    train(compact.train(), optimizer.compact(compact), x, 2)
    expected = compact.eval()(x)
    final = sparsefx.export(compact, (x,))
    assert not any(isinstance(module, _BatchNorm) for module in final.modules())
    assert relative_difference(final(x), expected) <= 1e-11
    for number, small in enumerate((compact.train(), final)):
        del small.report
        sparsefx.save(small, tmp_path / f"{number}.safetensors")
        loaded = sparsefx.load(tmp_path / f"{number}.safetensors", model)
        assert relative_difference(loaded(x), expected) <= 1e-11
