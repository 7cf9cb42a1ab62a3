"""sparsify: what is masked and how much, and that nothing else about the model changes."""

from __future__ import annotations

import copy
import io
import math
import pickle
import random
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from properties import properties
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import StochasticDepth

import sparsefx
from sparsefx import ArgumentError, MaskedConv2d, MaskedLayer, MaskedLinear
from sparsefx._common.distributions import active_counts
from sparsefx.masking.masks import check_invariant, masked_weights


class Block(nn.Module):
    """A residual block that the training mode drops at random."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=2, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(channels)
        self.drop = StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(F.relu(self.norm(self.conv(x))))


class Net(nn.Module):
    """Every way in which the modes differ: dropout, stochastic depth, an auxiliary head, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.projection = nn.Parameter(torch.randn(5, 6))
        self.head = nn.Linear(5, 3)
        self.aux = nn.Linear(8, 3)
        self.unused = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Any:
        x = self.blocks(self.stem(x))
        if self.training:
            self.steps.add_(1)
            early = self.aux(x.mean((2, 3)))
        x = F.dropout(self.up(x).mean((2, 3)), 0.3, self.training)
        out = self.head(F.linear(x, self.projection))
        return (out, early) if self.training else out

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)


class Branches(nn.Module):
    """Does not trace."""

    def __init__(self, inputs: int = 4, outputs: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


class Noise(nn.Module):
    """Draws random numbers in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * random.random()


class Counter(nn.Module):
    """Changes its own attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x) * self.calls


class Functional(nn.Module):
    """One parameter for each functional operation; ``w`` and ``bias`` are not weights of one."""

    def __init__(self) -> None:
        super().__init__()
        for n in (1, 2, 3):
            self.register_parameter(f"c{n}", nn.Parameter(torch.randn(4, 1, *(1,) * n)))
            self.register_parameter(f"t{n}", nn.Parameter(torch.randn(4, 2, *(1,) * n)))
        self.listed = nn.ParameterList([torch.randn(4, 4)])
        self.named = nn.ParameterDict({"a": torch.randn(4, 4)})
        self.w, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(F.linear(x, self.listed[0], self.bias) * self.w, weight=self.named["a"])
        x = F.conv_transpose1d(F.conv1d(x[..., None], self.c1, groups=4), self.t1, groups=2)
        x = F.conv_transpose2d(F.conv2d(x[..., None], self.c2, groups=4), self.t2, groups=2)
        x = F.conv_transpose3d(F.conv3d(x[..., None], self.c3, groups=4), self.t3, groups=2)
        return x.flatten(1)


class SharedParameter(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.w = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w)


class Language(nn.Module):
    """An embedding tied to the output layer."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.functional = functional
        if functional:
            self.table = nn.Parameter(torch.randn(10, 4))
        else:
            self.embedding, self.out = nn.Embedding(10, 4), nn.Linear(4, 10)
            self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return F.linear(self.inner(F.embedding(x, self.table)), self.table)
        return self.out(self.inner(self.embedding(x)))


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, *, negate: bool = False
    ) -> dict[str, Tensor]:
        y = self.fc(x) * scale
        if mask is not None:
            y = y * mask
        return {"out": -y if negate else y, "in": x}


class Everything(nn.Module):
    """``*args``, attention, a recurrent layer, a ModuleDict, a normalised weight, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.heads = nn.ModuleDict({"a_b": nn.Linear(8, 2), "c": nn.Linear(8, 3)})
        self.normalised = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, *xs: Tensor) -> dict[str, Any]:
        x = self.normalised(xs[0])
        y = self.attention(x, x, x, need_weights=False)[0]
        z, (hidden, _) = self.recurrent(y)
        return {"heads": [head(z) for head in self.heads.values()], "state": (hidden,)}


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {masked.name: masked.mask for masked in masked_weights(model)}


def dense_twin(sparse: nn.Module, original: nn.Module) -> nn.Module:
    """The original class with the sparse model's weights."""
    twin = copy.deepcopy(original)
    own = twin.state_dict()
    twin.load_state_dict(
        {key: value for key, value in sparse.state_dict().items() if key in own}, strict=True
    )
    return twin


def assert_equal(actual: Any, expected: Any) -> None:
    flat, spec = torch.utils._pytree.tree_flatten(actual)
    other, other_spec = torch.utils._pytree.tree_flatten(expected)
    assert spec == other_spec
    assert all(torch.equal(one, two) for one, two in zip(flat, other, strict=True))


def assert_behaves_as(
    actual: nn.Module, expected: nn.Module, *inputs: Any, modes: Sequence[bool] = (True, False, True, False)
) -> None:
    """Same outputs and same buffers with the same random state, switching modes."""
    for mode in modes:
        actual.train(mode)
        expected.train(mode)
        results = []
        for model in (actual, expected):
            torch.manual_seed(0)
            random.seed(0)
            with torch.no_grad():
                results.append(model(*inputs))
        assert_equal(*results)
        state = actual.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())


IMAGES = torch.randn(4, 3, 8, 8)


# What is masked


def test_every_kind_of_layer_is_masked() -> None:
    model = sparsefx.sparsify(Net(), density=0.5)
    assert isinstance(model, fx.GraphModule)
    assert list(masks(model)) == [
        "projection",
        "stem",
        "blocks.0.conv",
        "blocks.1.conv",
        "up",
        "head",
        "aux",
        "unused",
    ]
    assert type(model.get_submodule("stem")) is MaskedConv2d
    assert type(model.get_submodule("head")) is MaskedLinear
    check_invariant(model)
    assert all(torch.equal(m.weight != 0, m.mask) for m in masked_weights(model))


def test_kept_weights_are_the_originals() -> None:
    original = Net()
    model = sparsefx.sparsify(original, density=0.5)
    before = original.state_dict()
    for masked in masked_weights(model):
        source = masked.name if masked.name == "projection" else f"{masked.name}.weight"
        assert torch.equal(masked.weight, before[source] * masked.mask)
    plain = [key for key in before if key.endswith(("bias", "norm.weight", "running_mean"))]
    assert len(plain) == 12
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in plain)


def test_functional_uses_of_parameters_are_masked() -> None:
    original = Functional()
    model = sparsefx.sparsify(original, density=0.5)
    names = {"listed.0", "named.a", *(f"{kind}{n}" for kind in "ct" for n in (1, 2, 3))}
    assert set(masks(model)) == names
    twin = dense_twin(model, original)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), twin(x))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), twin(x))
        other.load_state_dict(original.state_dict())
        check_invariant(other)
        assert set(masks(other)) == names


def test_a_parameter_shared_by_functional_uses_has_one_mask() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    model = sparsefx.sparsify(nn.Sequential(SharedParameter(weight), SharedParameter(weight)), density=0.5)
    (masked,) = masked_weights(model)
    assert masked.name == "0.w"
    assert {"0.w_mask", "1.w_mask"} <= set(model.state_dict())
    masked.set_mask(torch.eye(4, dtype=torch.bool))
    assert torch.equal(model.get_buffer("1.w_mask"), torch.eye(4, dtype=torch.bool))


def test_a_layer_shares_its_mask_with_a_functional_use_of_its_weight() -> None:
    layer = nn.Linear(4, 4)
    model = sparsefx.sparsify(nn.Sequential(layer, SharedParameter(layer.weight)), density=0.5)
    (masked,) = masked_weights(model)
    assert masked.name == "0"
    assert len(masked.holders) == 2
    assert int(masked.mask.sum()) == 8


@pytest.mark.parametrize("functional", [True, False])
def test_an_output_layer_tied_to_an_embedding_stays_dense(functional: bool) -> None:
    original = Language(functional)
    model = sparsefx.sparsify(original, density=0.5)
    assert set(masks(model)) == {"inner"}
    if not functional:
        assert model.get_submodule("out").weight is model.get_submodule("embedding").weight
        assert type(model.get_submodule("out")) is nn.Linear
    x = torch.arange(6)
    assert torch.equal(model(x), dense_twin(model, original)(x))


def test_a_module_called_twice_and_one_under_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    original = Twice()
    model = sparsefx.sparsify(original, density=0.5)
    assert list(masks(model)) == ["a"]
    assert int(masks(model)["a"].sum()) == 8
    assert model.get_submodule("a") is model.get_submodule("b")
    assert list(model.state_dict()) == ["a.weight", "a.bias", "a.mask", "b.weight", "b.bias", "b.mask"]
    model.load_state_dict(original.state_dict())
    check_invariant(model)


def test_a_model_that_is_sparse_already_or_has_nothing_to_mask() -> None:
    with pytest.raises(ArgumentError, match="masked already; sparsify the dense model it came from"):
        sparsefx.sparsify(sparsefx.sparsify(mlp()))
    with pytest.raises(ArgumentError, match=r"model Sequential has no layer to mask .*Conv2d"):
        sparsefx.sparsify(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    with pytest.raises(ArgumentError, match="layer '0' is lazy and has no shape yet; run model"):
        sparsefx.sparsify(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize("density", [0, -0.1, 1.01, math.nan, math.inf, "0.1", None, torch.tensor(0.1)])
def test_wrong_densities(density: Any) -> None:
    with pytest.raises(ArgumentError, match=r"density=.* is outside \(0, 1\]; 0.05 keeps 5%"):
        sparsefx.sparsify(mlp(), density)


@pytest.mark.parametrize("model", [None, nn.Linear, {"a": 1}, torch.relu])
def test_not_a_module(model: Any) -> None:
    with pytest.raises(ArgumentError, match=r"model must be a torch.nn.Module, got"):
        sparsefx.sparsify(model)


def test_a_lazy_model_that_has_run_is_masked() -> None:
    original = nn.Sequential(nn.LazyLinear(3))
    original(torch.randn(1, 4))
    assert int(masks(sparsefx.sparsify(original, density=0.5))["0"].sum()) == 6


# How much


@properties(40)
@given(st.floats(0.02, 1), st.sampled_from(["uniform", "erdos_renyi", "er", "erk", "set"]), st.booleans())
def test_counts_are_exact(density: float, distribution: str, trace: bool) -> None:
    model = sparsefx.sparsify(mlp(), density, distribution=distribution, trace=trace)
    shapes = [torch.Size((16, 8)), torch.Size((4, 16))]
    counts = [int(mask.sum()) for mask in masks(model).values()]
    assert counts == active_counts(shapes, density, distribution)
    assert sum(counts) == round(density * 192)
    check_invariant(model)


def test_density_counts_only_the_layers_that_are_masked() -> None:
    model = sparsefx.sparsify(mlp(), 0.5, distribution="erk", dense="2")
    assert {name: int(mask.sum()) for name, mask in masks(model).items()} == {"0": 64}


def test_a_distribution_of_your_own() -> None:
    seen: list[Any] = []

    def halve(shapes: Sequence[torch.Size], density: float) -> list[float]:
        seen.append((list(shapes), density))
        return [density, density / 2]

    model = sparsefx.sparsify(mlp(), 0.5, distribution=halve)
    assert seen == [([(16, 8), (4, 16)], 0.5)]
    assert [int(mask.sum()) for mask in masks(model).values()] == [64, 16]


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ("unifrom", "distribution='unifrom' is not known; did you mean 'uniform'"),
        (lambda shapes, density: [density], r"returned \[0.5\] for 2 layers"),
        (lambda shapes, density: [2, 0], r"it must return one density in \[0, 1\] a layer"),
    ],
)
def test_wrong_distributions(distribution: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        sparsefx.sparsify(mlp(), 0.5, distribution=distribution)


@pytest.mark.parametrize("density", [1, 1.0, numpy.float32(1)])
def test_density_one_keeps_everything(density: Any) -> None:
    original = mlp()
    model = sparsefx.sparsify(original, density)
    assert all(bool(mask.all()) for mask in masks(model).values())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in original.state_dict().items())


def test_masks_follow_the_generator_and_leave_the_global_one_alone() -> None:
    original = mlp()
    state = torch.get_rng_state()
    one, two, three = (
        masks(sparsefx.sparsify(original, 0.3, generator=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_masks_follow_the_global_seed_without_a_generator() -> None:
    original, drawn = mlp(), []
    for trace in (True, False):
        torch.manual_seed(5)
        drawn.append(masks(sparsefx.sparsify(original, 0.3, trace=trace)))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


# What is left alone


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("trace", [True, False])
def test_the_callers_model_is_untouched(mode: bool, trace: bool) -> None:
    model = nn.Sequential(Net(), nn.Sequential(nn.Linear(3, 4), Counter())).train(mode)
    model[0].head.eval()
    types = [type(module) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    state = {key: (value, value.clone()) for key, value in model.state_dict().items()}
    python, numbers = random.getstate(), numpy.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = sparsefx.sparsify(model, density=0.5, trace=trace)
    assert [type(module) for module in model.modules()] == types
    assert [module.training for module in model.modules()] == modes
    assert model[1][1].calls == 0
    assert not any("_tensor_constant" in key for module in model.modules() for key in module.__dict__)
    for key, value in model.state_dict().items():
        assert value.data_ptr() == state[key][0].data_ptr()
        assert torch.equal(value, state[key][1])
    assert random.getstate() == python
    assert (numpy.random.get_state()[1] == numbers).all()
    assert sparse.training is mode
    assert sparse.get_submodule("0.head").training is False
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert not own & {tensor.data_ptr() for tensor in sparse.parameters()}


def test_no_part_of_the_random_state_but_the_masks_is_used() -> None:
    model = Net()
    torch.manual_seed(0)
    sparse = sparsefx.sparsify(model, density=0.5)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    for mask in masks(sparse).values():
        torch.randperm(mask.numel())
    assert torch.equal(torch.get_rng_state(), after)


def test_state_dict_has_every_key_of_the_original_and_the_masks() -> None:
    original = Net()
    model = sparsefx.sparsify(original, density=0.5)
    expected = set(original.state_dict())
    expected |= {"projection_mask"} | {f"{name}.mask" for name in masks(model) if name != "projection"}
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert set(other.state_dict()) == expected
        assert list(other.load_state_dict(original.state_dict(), strict=True)) == [[], []]
        check_invariant(other)
        trained = {
            key: value + 1 for key, value in other.state_dict().items() if key in original.state_dict()
        }
        copy.deepcopy(original).load_state_dict(trained, strict=True)
    fresh = sparsefx.sparsify(original, density=0.2)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in model.state_dict().items())


# Behaves as the original


def test_both_modes_switching_freely() -> None:
    original = Net()
    model = sparsefx.sparsify(original, density=0.5)
    assert_behaves_as(model, dense_twin(model, original), IMAGES)
    assert isinstance(model, fx.GraphModule)
    assert set(model.train().graph.nodes) != set(model.eval().graph.nodes)
    model.graph.lint()


class FrozenNorm(nn.Module):
    """Its own ``train`` keeps the norm in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.other = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.norm(self.fc(x)))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.norm.eval()
        return self


class AlwaysEvaluates(FrozenNorm):
    def train(self, mode: bool = True) -> Any:
        return super().train(False)


@pytest.mark.parametrize("kind", [FrozenNorm, AlwaysEvaluates])
def test_a_train_method_of_its_own_keeps_its_effect(kind: type[nn.Module]) -> None:
    original = kind().train()
    model = sparsefx.sparsify(original, density=0.5)
    assert isinstance(model, fx.GraphModule)
    twin = dense_twin(model, original)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_behaves_as(other, copy.deepcopy(twin), torch.randn(6, 4))
        assert [m.training for m in other.train().modules()] == [m.training for m in twin.train().modules()]


@pytest.mark.parametrize("trace", [True, False])
def test_gradients_are_those_of_the_original(trace: bool) -> None:
    original = Net()
    model = sparsefx.sparsify(original, density=0.5, trace=trace)
    twin = dense_twin(model, original)
    for either in (model, twin):
        torch.manual_seed(0)
        sum(output.sum() for output in either(IMAGES)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in twin.named_parameters():
        assert (gradients[name] is None) == (parameter.grad is None)
        assert parameter.grad is None or torch.equal(gradients[name], parameter.grad)


@pytest.mark.slow
def test_googlenet_and_its_auxiliary_heads() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = torchvision.models.googlenet(weights=None, num_classes=5, init_weights=False)
    model = sparsefx.sparsify(original, density=0.3)
    assert isinstance(model, fx.GraphModule)
    twin = dense_twin(model, original)
    assert_behaves_as(model, twin, torch.randn(2, 3, 64, 64))
    assert type(model.train()(torch.randn(2, 3, 64, 64))).__name__ == "GoogLeNetOutputs"


@pytest.mark.slow  # as GoogLeNet
def test_inception_and_its_auxiliary_head() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = torchvision.models.inception_v3(weights=None, num_classes=5, init_weights=False)
    model = sparsefx.sparsify(original, density=0.3)
    assert isinstance(model, fx.GraphModule)
    twin = dense_twin(model, original)
    assert_behaves_as(model, twin, torch.randn(2, 3, 75, 75), modes=[False])
    assert_behaves_as(model, twin, torch.randn(2, 3, 299, 299), modes=[True])
    assert_behaves_as(model, twin, torch.randn(2, 3, 75, 75), modes=[False])


def test_efficientnet_and_its_stochastic_depth() -> None:
    original = torchvision.models.efficientnet_b0(weights=None, num_classes=5)
    model = sparsefx.sparsify(original, density=0.3)
    assert_behaves_as(model, dense_twin(model, original), torch.randn(2, 3, 32, 32))


def test_optional_arguments() -> None:
    original = Options()
    model = sparsefx.sparsify(original, density=0.5)
    assert isinstance(model, fx.GraphModule)
    twin = dense_twin(model, original)
    x = torch.randn(2, 4)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for arguments, keywords in (
            ((x,), {}),
            ((x, None, 3.0), {}),
            ((), {"x": x, "scale": 0.5}),
            ((x,), {"mask": None, "negate": False}),
        ):
            assert_equal(other(*arguments, **keywords), twin(*arguments, **keywords))
        with pytest.raises(
            TypeError, match="argument 'negate' was traced as False and cannot change; got True"
        ):
            other(x, negate=True)


def test_unusual_modules_and_signatures() -> None:
    original = Everything()
    model = sparsefx.sparsify(original, density=0.5, dense="normalised")
    assert set(masks(model)) == {"attention.out_proj", "heads.a_b", "heads.c"}
    twin = dense_twin(model, original)
    x = torch.randn(2, 5, 8)
    assert_behaves_as(model, twin, x, x + 1)
    assert_equal(copy.deepcopy(model)(x), twin(x))


def test_nested_graph_modules() -> None:
    original = nn.Sequential(fx.symbolic_trace(mlp()), nn.Linear(4, 2))
    model = sparsefx.sparsify(original, density=0.5)
    assert set(masks(model)) == {"0.0", "0.2", "1"}
    x = torch.randn(3, 8)
    assert torch.equal(model(x), dense_twin(model, original)(x))
    assert set(masks(sparsefx.sparsify(fx.symbolic_trace(mlp()), density=0.5))) == {"0", "2"}


@pytest.mark.parametrize("on", ["model", "container", "layer"])
def test_forward_hooks_keep_their_effect(on: str) -> None:
    original = nn.Sequential(Block(4), nn.Conv2d(4, 2, 1))
    target = {"model": original, "container": original[0], "layer": original[1]}[on]
    target.register_forward_hook(lambda module, args, output: output * 2)
    if on == "container":
        with pytest.warns(UserWarning, match=r"0 \(it has forward hooks\)"):
            model = sparsefx.sparsify(original, density=0.5)
    else:
        model = sparsefx.sparsify(original, density=0.5)
    assert isinstance(model, fx.GraphModule)
    assert_behaves_as(model, dense_twin(model, original), torch.randn(2, 4, 5, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype(dtype: torch.dtype) -> None:
    model = sparsefx.sparsify(mlp().to(dtype), density=0.5)
    assert sum(int((masked.weight != 0).sum()) for masked in masked_weights(model)) == 96
    assert all(masked.weight.dtype is dtype for masked in masked_weights(model))


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_weights() -> None:
    model = sparsefx.sparsify(mlp().to(torch.complex64), density=0.5)
    assert sum(int((masked.weight != 0).sum()) for masked in masked_weights(model)) == 96


def test_the_meta_device() -> None:
    with torch.device("meta"):
        original = mlp()
    model = sparsefx.sparsify(original, density=0.5)
    assert all(masked.weight.is_meta and masked.mask.is_meta for masked in masked_weights(model))
    assert "MaskedLinear" in str(model)
    sparse = sparsefx.sparsify(mlp(), density=0.5)
    model.load_state_dict(sparse.state_dict(), assign=True)
    x = torch.randn(2, 8)
    assert torch.equal(model(x), sparse(x))


def test_masks_that_the_meta_device_left_without_values() -> None:
    def made() -> tuple[nn.Module, sparsefx.SparseMomentum]:
        with torch.device("meta"):
            model = sparsefx.sparsify(mlp(), density=0.5)
        model.to_empty(device="cpu")
        return model, sparsefx.SparseMomentum(torch.optim.SGD(model.parameters(), lr=0.1), model, cycles=2)

    sparse = sparsefx.sparsify(mlp(), density=0.5)
    dense = {name: value for name, value in sparse.state_dict().items() if not name.endswith("mask")}
    model, optimizer = made()
    model.load_state_dict(dense)  # brings no masks
    for act in (optimizer.step, optimizer.cycle):
        with pytest.raises(ArgumentError, match=r"masks of 0, 2 were made on the meta device .* state dict"):
            act()
    model.load_state_dict(sparse.state_dict())
    optimizer.step()
    model, optimizer = made()
    for layer, other in zip(masked_weights(model), masked_weights(sparse), strict=True):
        layer.set_mask(other.mask)
    optimizer.step()


# What does not trace


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Branches, "TraceError: symbolically traced variables cannot be used as inputs to control flow"),
        (Noise, "its forward draws random numbers outside the graph"),
        (Counter, "its forward changes its attribute 'calls'"),
    ],
)
def test_a_part_that_does_not_trace_stays_a_leaf(kind: Callable[[], nn.Module], reason: str) -> None:
    original = nn.Sequential(nn.Linear(4, 4), kind(), nn.Sequential(nn.ReLU(), kind()))
    with pytest.warns(UserWarning, match="not traced") as caught:
        model = sparsefx.sparsify(original, density=0.5)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert f"1 ({reason}" in message
    assert f"2.1 ({reason}" in message
    assert caught[0].filename == __file__
    assert isinstance(model, fx.GraphModule)
    assert set(masks(model)) == {"0", "1.fc", "2.1.fc"}
    assert isinstance(model.get_submodule("1.fc"), MaskedLayer)
    check_invariant(model)
    assert type(model.get_submodule("1")) is kind
    assert_behaves_as(model, dense_twin(model, original), torch.randn(3, 4))
    assert getattr(original[1], "calls", 0) == 0
    other = pickle.loads(pickle.dumps(model))
    assert_behaves_as(other, copy.deepcopy(model), torch.randn(3, 4))


def test_a_model_that_does_not_trace_is_masked_all_the_same() -> None:
    original = Branches()
    with pytest.warns(UserWarning, match=r"the model itself \(TraceError: symbolically traced") as caught:
        model = sparsefx.sparsify(original, density=0.5)
    assert len(caught) == 1
    assert type(model) is Branches
    assert model is not original
    assert list(masks(model)) == ["fc"]
    assert_behaves_as(model, dense_twin(model, original), torch.randn(3, 4))


def test_a_model_that_traces_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(sparsefx.sparsify(Net(), density=0.5), fx.GraphModule)


class MadeFromSizes(nn.Module):
    """Makes tensors from the sizes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, channels = x.size(0), x.size(1)
        rows = torch.arange(n, dtype=x.dtype)[:, None] + torch.ones(n, 1) + torch.full((n, 1), 2.0)
        added = torch.zeros(n, channels) + torch.eye(n)[:, :1] + torch.linspace(0, 1, n)[:, None]
        return self.layer(x) + rows + added


def test_tensors_made_from_sizes_are_traced() -> None:
    model = MadeFromSizes()
    sparse = sparsefx.sparsify(model, density=1.0)  # a warning would say that it is not
    assert isinstance(sparse, fx.GraphModule)
    for rows in (2, 5):
        x = torch.randn(rows, 4)
        assert torch.equal(sparse(x), model(x))


def test_without_tracing_class_and_methods_stay() -> None:
    original = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sparsefx.sparsify(original, density=0.5, trace=False)
        branches = sparsefx.sparsify(Branches(), density=0.5, trace=False)
    assert type(model) is Net
    assert type(branches) is Branches
    assert set(masks(model)) == {"stem", "blocks.0.conv", "blocks.1.conv", "up", "head", "aux", "unused"}
    assert_behaves_as(model, dense_twin(model, original), IMAGES)
    assert model.eval().predict(IMAGES).shape == (4,)


# Lives among torch's tools


def test_deepcopy_pickle_and_files() -> None:
    original = Net()
    model = sparsefx.sparsify(original, density=0.5).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert other.training is False
        assert set(masks(other)) == set(masks(model))
        assert_behaves_as(other, dense_twin(model, original), IMAGES)
        other.load_state_dict(original.state_dict())
        check_invariant(other)


def test_its_state_dict_saves_and_loads_without_pickled_code() -> None:
    model = sparsefx.sparsify(Net(), density=0.5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = sparsefx.sparsify(Net(), density=0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_behaves_as(other, model, IMAGES)


def test_compile_in_both_modes() -> None:
    original = Net()
    model = sparsefx.sparsify(original, density=0.5)
    twin = dense_twin(model, original)
    compiled = torch.compile(model, backend="eager")
    assert_behaves_as(compiled._orig_mod, twin, IMAGES, modes=[True])
    for mode in (False, True, False):
        compiled.train(mode)
        twin.train(mode)
        results = []
        for either in (compiled, twin):
            torch.manual_seed(0)
            results.append(either(IMAGES))
        assert_equal(*results)


def test_averaged_model() -> None:
    model = sparsefx.sparsify(Net(), density=0.5)
    averaged = AveragedModel(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    for _ in range(2):
        averaged.update_parameters(model)
    for name, parameter in averaged.module.named_parameters():
        assert torch.allclose(parameter, before[name] * 3)
    check_invariant(averaged.module)
    assert averaged.eval()(IMAGES).shape == (4, 3)


def test_moving_and_changing_dtype_keep_the_invariant_and_the_function() -> None:
    original = Net().double()
    model = sparsefx.sparsify(original.float(), density=0.5).double().to("cpu")
    check_invariant(model)
    assert_behaves_as(model, dense_twin(model, Net().double()), IMAGES.double())


def test_a_training_step_under_autocast() -> None:
    model = sparsefx.sparsify(Net(), density=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, early = model(IMAGES)
    assert out.dtype is torch.bfloat16
    (out.sum() + early.sum()).backward()
    assert model.get_parameter("stem.weight").grad is not None


class Conv1D(nn.Module):
    """What Transformers calls so: a linear layer with its weight the other way round."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_conv1d_that_stays_dense_beside_masked_layers_is_told() -> None:
    net = nn.Sequential(Conv1D(4, 4), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"1 Conv1D layers stay dense \(0\); .*conv1d_to_linear"):
        sparse = sparsefx.sparsify(net, density=0.5)
    assert [masked.name for masked in masked_weights(sparse)] == ["1"]


def test_other_layers_of_that_name_are_not_told_of() -> None:
    mine = type("Conv1D", (nn.Conv1d,), {})
    wrapper = type("Conv1D", (nn.Sequential,), {})
    sparsefx.sparsify(nn.Sequential(mine(4, 4, 1), wrapper(nn.Conv1d(4, 2, 1))), density=0.5, dense="0")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("trace", [True, False])
def test_a_weight_that_a_hook_computes_is_copied(trace: bool) -> None:
    """The older weight normalisation leaves a computed tensor in the layer."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    model(x)
    sparse = sparsefx.sparsify(model, 1.0, dense="0", trace=trace)
    torch.testing.assert_close(sparse(x), model(x))
    assert "0.mask" not in sparse.state_dict()


def test_a_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8)))
    model.get_submodule("0").locks = {"one": threading.Lock()}  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"cannot be copied .*, which '0.locks' holds; remove it before"):
        sparsefx.sparsify(model)


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_model_that_torch_jit_compiled(trace: bool) -> None:
    compiled = torch.jit.script(nn.Sequential(nn.Linear(4, 8)))
    with pytest.raises(ArgumentError, match=r"compiled by torch.jit; sparsify the model as it was before"):
        sparsefx.sparsify(compiled, trace=trace)
