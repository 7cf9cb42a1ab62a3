"""Every regulariser: one decision, exact masks, nothing left behind, checkpoints to the bit."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import check_invariant, masked_weights
from sparsefx.regularisers import (
    REGULARISERS,
    HardConcrete,
    LearningCompression,
    Regulariser,
    SoftWeightSharing,
    VariationalDropout,
)

Build = Callable[[nn.Module], Regulariser]


def hard_concrete(model: nn.Module, **options: Any) -> HardConcrete:
    """Gates between closed and open."""
    regulariser = HardConcrete(model, samples=200, **options)
    for log_alpha in regulariser.log_alphas:
        nn.init.normal_(log_alpha, 1.0, 2.0)
    return regulariser


METHODS: dict[str, Build] = {
    "learning_compression": lambda model: LearningCompression(model, level=0.3, c_steps=3, mu=0.1),
    "learning_compression_l1": lambda model: LearningCompression(
        model, c_step="l1_penalty", level=0.01, mu=0.5
    ),
    "soft_weight_sharing": lambda model: SoftWeightSharing(
        model, samples=20, components=5, zero_proportion=0.4
    ),
    "variational_dropout": lambda model: VariationalDropout(model, samples=2000, log_variance=-4.0),
    "variational_dropout_clip": lambda model: VariationalDropout(
        model, samples=2000, log_variance=-4.0, train_clip=True
    ),
    "hard_concrete": lambda model: hard_concrete(model),
    "hard_concrete_example": lambda model: hard_concrete(model, per_example=True),
    "hard_concrete_weight": lambda model: hard_concrete(model, gates="weight"),
}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 7 * 7, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (5, 12)),
    "conv_net": (conv_net, (5, 2, 4, 4)),
}


def build(method: str, network: str) -> tuple[nn.Module, Regulariser, Tensor, Tensor]:
    """A sparsified float64 network, its regulariser, inputs and targets."""
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    model = sparsefx.sparsify(make().double(), density=1.0)
    assert isinstance(model, torch.fx.GraphModule)
    regulariser = METHODS[method](model)
    return model, regulariser, torch.randn(shape, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


def optimizer_of(model: nn.Module, regulariser: Regulariser, rate: float = 0.02) -> torch.optim.Optimizer:
    groups = [{"params": list(model.parameters())}, *regulariser.parameter_groups()]
    for group in groups:
        group["lr"] = rate
    return torch.optim.Adam(groups)


def train(
    model: nn.Module,
    regulariser: Regulariser,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    steps: range,
) -> None:
    model.train()
    for step in steps:
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + regulariser.penalty()).backward()
        optimizer.step()
        regulariser.after_step((step + 1) / 20)


def trained(method: str, network: str) -> tuple[nn.Module, Regulariser, Tensor]:
    """A model in evaluation after 20 steps, its regulariser and an input."""
    return copy.deepcopy(_trained(method, network))


@functools.cache
def _trained(method: str, network: str) -> tuple[nn.Module, Regulariser, Tensor]:
    model, regulariser, x, y = build(method, network)
    train(model, regulariser, optimizer_of(model, regulariser), x, y, range(20))
    assert model.eval()(x).std(0).max() > 0.05, "a constant model would pass any comparison"
    return model, regulariser, x


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


both = pytest.mark.parametrize("network", NETWORKS)
each = pytest.mark.parametrize("method", METHODS)


def test_every_registered_method_is_tested() -> None:
    model = sparsefx.sparsify(mlp(), density=1.0)
    assert {type(make(model)) for make in METHODS.values()} == set(REGULARISERS.values())


@both
@each
def test_the_decision_keeps_the_invariant_and_leaves_no_hook(method: str, network: str) -> None:
    model, regulariser, _ = trained(method, network)
    density = regulariser.density()
    assert 0 < density < 1
    regulariser.decide()
    check_invariant(model)
    masks = [masked.mask for masked in masked_weights(model)]
    active, total = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    assert active / total == density == regulariser.density()
    assert hooks_of(model) == 0
    assert regulariser.penalty().item() == 0
    with pytest.raises(ArgumentError, match="decided"):
        regulariser.decide()


@both
@each
@pytest.mark.parametrize("density", [0.037, 0.5, 1.0])
def test_a_density_is_kept_exactly(method: str, network: str, density: float) -> None:
    model, regulariser, _ = trained(method, network)
    regulariser.decide(density)
    masks = [masked.mask for masked in masked_weights(model)]
    assert sum(int(mask.sum()) for mask in masks) == round(density * sum(mask.numel() for mask in masks))
    check_invariant(model)


@each
def test_densities_are_nested_and_agree_with_the_threshold(method: str) -> None:
    model, regulariser, _ = trained(method, "mlp")
    threshold = regulariser.density()
    masks: dict[float | None, Tensor] = {}
    for density in (None, 0.5 * threshold, threshold, 0.5 * (1 + threshold)):
        twin, own = copy.deepcopy((model, regulariser))
        own.decide(density)
        masks[density] = torch.cat([masked.mask.flatten() for masked in masked_weights(twin)])
    by_threshold, fewer, same, more = masks.values()
    assert bool((fewer <= same).all())
    assert bool((same <= more).all())
    assert torch.equal(by_threshold, same)


@both
@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith(("var", "hard"))])
def test_evaluation_is_that_of_the_decided_model(method: str, network: str) -> None:
    model, regulariser, x = trained(method, network)
    before = model(x)
    regulariser.decide()
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


@both
@each
def test_export_of_the_decided_model_is_exact(method: str, network: str) -> None:
    model, regulariser, x = trained(method, network)
    regulariser.decide()
    compact = sparsefx.export(model, (x,))
    torch.testing.assert_close(compact(x), model(x), rtol=1e-11, atol=1e-11)


@both
@each
def test_training_reaches_every_parameter(method: str, network: str) -> None:
    model, regulariser, x, y = build(method, network)
    regulariser.after_step(0.5)
    (F.cross_entropy(model(x), y) + regulariser.penalty()).backward()
    parameters = [*model.parameters(), *regulariser.parameters()]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
    assert all(bool(p.grad.any()) for p in regulariser.parameters() if p.grad is not None)
    grouped = [p for group in regulariser.parameter_groups() for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in regulariser.parameters()}
    assert len(grouped) == len(list(regulariser.parameters()))


@both
@each
def test_a_checkpoint_reproduces_the_next_steps_bit_for_bit(method: str, network: str) -> None:
    model, regulariser, x, y = build(method, network)
    optimizer = optimizer_of(model, regulariser)
    train(model, regulariser, optimizer, x, y, range(10))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, regulariser, optimizer)], file)
    rng = torch.get_rng_state()
    train(model, regulariser, optimizer, x, y, range(10, 20))
    regulariser.decide()

    again, other, _, _ = build(method, network)
    stepper = optimizer_of(again, other)
    file.seek(0)
    for part, state in zip((again, other, stepper), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(rng)
    train(again, other, stepper, x, y, range(10, 20))
    other.decide()
    for one, two in ((model, again), (regulariser, other)):
        states = [module.state_dict() for module in (one, two)]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            same = (
                torch.equal(value, states[1][key]) if isinstance(value, Tensor) else value == states[1][key]
            )
            assert same, key


@each
def test_the_state_holds_nothing_of_the_model(method: str) -> None:
    _, regulariser, _, _ = build(method, "mlp")
    assert list(regulariser.children()) == [
        module for module in regulariser.children() if isinstance(module, nn.ParameterList)
    ]


@each
def test_a_state_saved_after_the_decision_detaches(method: str) -> None:
    model, regulariser, x = trained(method, "conv_net")
    regulariser.decide()
    again, other, _, _ = build(method, "conv_net")
    again.load_state_dict(model.state_dict())
    other.load_state_dict(regulariser.state_dict())
    assert hooks_of(again) == 0
    assert other.penalty().item() == 0
    torch.testing.assert_close(again.eval()(x), model(x), rtol=0, atol=0)


@each
def test_detaching_gives_the_plain_model_back_and_attaching_the_method(method: str) -> None:
    model, regulariser, x = trained(method, "conv_net")
    with_method = model(x)
    regulariser.detach()
    assert hooks_of(model) == 0
    plain: Any = conv_net().double().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("mask")})
    assert torch.equal(model(x), plain(x))
    regulariser.attach()
    regulariser.attach()
    assert torch.equal(model(x), with_method)


@each
def test_a_copied_model_is_on_its_own(method: str) -> None:
    model, regulariser, x = trained(method, "conv_net")
    before = model(x)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), before)
    regulariser.decide(0.01)
    assert torch.equal(copied(x), before)


@both
@each
def test_autocast_trains_and_evaluates(method: str, network: str) -> None:
    model, regulariser, x, y = build(method, network)
    model.float()
    regulariser.float()
    for mode in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.train(mode)(x.float())
        assert outputs.dtype is torch.bfloat16
        (F.cross_entropy(outputs.float(), y) + regulariser.penalty()).backward()
    gradients = [p.grad for p in (*model.parameters(), *regulariser.parameters())]
    assert all(g is not None and g.dtype is torch.float32 and bool(g.isfinite().all()) for g in gradients)


@each
def test_refusals(method: str) -> None:
    with pytest.raises(ArgumentError, match="no masked weights"):
        METHODS[method](mlp())
    with pytest.raises(ArgumentError, match="inactive weights in 0, 2, 4"):
        METHODS[method](sparsefx.sparsify(mlp(), density=0.5))
    model, regulariser, _, _ = build(method, "mlp")
    with pytest.raises(ArgumentError, match=r"progress=1\.5"):
        regulariser.after_step(1.5)
    for density in (0, 1.1):
        with pytest.raises(ArgumentError, match="density="):
            regulariser.decide(density)
    assert all(bool(masked.mask.all()) for masked in masked_weights(model))


@pytest.mark.parametrize("method", ["variational_dropout", "hard_concrete"])
def test_a_layer_with_a_forward_of_its_own_is_refused(method: str) -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    model = sparsefx.sparsify(nn.Sequential(Scaled(4, 4)), density=1.0, trace=False)
    with pytest.raises(ArgumentError, match="model uses 0 in MaskedScaled"):
        METHODS[method](model)
    assert hooks_of(model) == 0
