"""Optimizers that evaluate at points of their own, step twice, or keep another state than momentum."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import masked_mlp, reloaded, total_active
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import check_invariant, masked_weights
from sparsefx.optim.gradients.momentum import keeps_momentum

SGD = torch.optim.SGD
Weights = list[nn.Parameter]


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation as its public implementations write it: two steps, one norm."""

    def __init__(self, params: Any, rho: float = 0.05) -> None:
        super().__init__(params, {"rho": rho})
        self.base_optimizer = SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old_p"] = p.data.clone()
            p.add_(p.grad, alpha=0.05 / float(norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()


class Kept(torch.optim.Optimizer):
    """Plain descent that keeps a momentum in some form."""

    def __init__(self, params: Any, key: str, form: Callable[[Tensor], Any]) -> None:
        super().__init__(params, {})
        self.key, self.form = key, form

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for weight in self.param_groups[0]["params"]:
            self.state[weight][self.key] = self.form(weight.grad)
            weight.sub_(weight.grad, alpha=0.1)


class Lookahead(torch.optim.Optimizer):
    """Every three steps, half of the way back to slow weights, which it keeps for itself."""

    def __init__(self, inner: Any) -> None:
        self.optimizer = inner
        self.state, self.steps = defaultdict(dict), 0
        self.param_groups, self.defaults = inner.param_groups, inner.defaults
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["cached_params"] = weight.detach().clone()

    def step(self, closure: Any = None) -> None:
        self.optimizer.step()
        self.steps += 1
        for group in self.param_groups if self.steps % 3 == 0 else []:
            for weight in group["params"]:
                slow = self.state[weight]["cached_params"]
                weight.data.mul_(0.5).add_(slow, alpha=0.5)
                slow.copy_(weight.data)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad()


def _batch(seed: int) -> Tensor:
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(seed))


def _loss(model: nn.Module, seed: int = 0) -> Tensor:
    x = _batch(seed)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def _train(model: nn.Module, optimizer: Any, steps: int) -> None:
    for seed in range(steps):
        optimizer.zero_grad()
        _loss(model, seed).backward()
        optimizer.step()


def _sparse(density: float = 0.4) -> nn.Module:
    torch.manual_seed(0)
    return masked_mlp(6, 12, 10, 3, density=density)


class _Search(torch.optim.Optimizer):
    """Steepest descent by a backtracking line search: the step is accepted by the norm of the gradient."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.accepted: list[float] = []

    def step(self, closure: Any) -> Tensor:
        loss = closure()
        held = list(self.param_groups[0]["params"])
        slopes = [p.grad.clone() for p in held]
        decrease = float(sum(slope.square().sum() for slope in slopes))
        start, rate = [p.detach().clone() for p in held], 1.0
        while rate > 1e-6:
            with torch.no_grad():
                for p, slope, origin in zip(held, slopes, start, strict=True):
                    p.copy_(origin - rate * slope)
            if float(closure().detach()) <= float(loss.detach()) - 0.5 * rate * decrease:
                break
            rate /= 2
        self.accepted.append(rate)
        return loss


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.LBFGS(p, lr=1, max_iter=20),
        lambda p: torch.optim.LBFGS(p, lr=1, max_iter=20, line_search_fn="strong_wolfe"),
        _Search,
    ],
    ids=["lbfgs", "strong wolfe", "backtracking"],
)
def test_a_convex_problem_is_solved_as_if_inactive_weights_did_not_exist(make: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 20, dtype=torch.float64) @ torch.randn(20, 20, dtype=torch.float64)
    y = x @ torch.randn(20, 1, dtype=torch.float64)
    x, y = x / 5, y / 5
    model = sparsefx.sparsify(nn.Sequential(nn.Linear(20, 1, bias=False).double()), 0.5, seed=0)
    mask = masked_weights(model)[0].mask[0].clone()
    small = nn.Parameter(model.get_parameter("0.weight").detach()[:, mask].clone())
    optimizer = sparsefx.SparseMomentum(make(model.parameters()), model, cycles=5, grow="gradient")
    alone = make([small])

    def sparse() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    def dense() -> Tensor:
        alone.zero_grad()
        loss = (F.linear(x[:, mask], small) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(sparse)
        alone.step(dense)
        check_invariant(model)
    torch.testing.assert_close(model.get_parameter("0.weight")[:, mask], small, rtol=1e-6, atol=1e-8)
    assert bool((model.get_parameter("0.weight").grad[:, ~mask] != 0).any())  # for growth
    optimizer.cycle()
    moved = masked_weights(model)[0].mask[0] & ~mask
    assert int(moved.sum()) > 0
    before = float(sparse().detach())
    optimizer.step(sparse)
    assert float(sparse().detach()) < before
    check_invariant(model)


@pytest.mark.parametrize("by_closure", [False, True])
def test_sam_perturbs_active_weights_alone(by_closure: bool) -> None:
    model, seen = _sparse(), []
    optimizer = sparsefx.SparseMomentum(Sam(model.parameters()), model, cycles=9, every=4)
    assert hasattr(optimizer, "first_step")
    active = total_active(model)
    for seed in range(12):
        optimizer.zero_grad()
        _loss(model, seed).backward()
        before = [p.detach().clone() for p in model.parameters()]

        def evaluate(seed: int = seed, before: list[Tensor] = before) -> Tensor:
            check_invariant(model)
            moved = [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]
            seen.append(float(torch.stack([part.norm() for part in moved]).norm()))
            loss = _loss(model, seed)
            loss.backward()
            return loss

        if by_closure:
            optimizer.step(evaluate)
        else:
            optimizer.first_step(zero_grad=True)
            evaluate()
            optimizer.second_step(zero_grad=True)
        check_invariant(model)
    assert seen == pytest.approx([0.05] * 12, rel=1e-4)  # rho: no part of it is lost on inactive weights
    assert [record.step for record in optimizer.history] == [4, 8, 12]
    assert total_active(model) == active


def test_others_have_no_first_step() -> None:
    model = _sparse()
    optimizer = sparsefx.SparseMomentum(SGD(model.parameters(), 0.1), model, cycles=1)
    assert not hasattr(optimizer, "first_step")
    with pytest.raises(AttributeError, match="first_step"):
        optimizer.first_step()


FORMS = {
    "projected": ("exp_avg", lambda grad: grad[:1]),  # GaLore
    "some positions": ("exp_avg", lambda grad: grad.flatten()[:2]),  # SPAM
    "several": ("momentum_buffer", lambda grad: {0.9: grad.clone(), 0.99: grad.clone()}),  # AggMo
    "a list": ("momentum_buffer", lambda grad: [grad.clone()]),
    "quantised in blocks": ("exp_avg", lambda grad: (grad.clone(), grad.amax())),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("grow", ["momentum", "random"])
def test_a_momentum_of_another_form_is_replaced_by_an_average_at_once(name: str, grow: str) -> None:
    model = _sparse()
    inner = Kept(model.parameters(), *FORMS[name])
    optimizer = sparsefx.SparseMomentum(inner, model, cycles=4, grow=grow)
    key = FORMS[name][0]
    message = rf"'{key}' that Kept keeps of 0 and 2 more weights .*averages their gradients: 4 bytes"
    with pytest.warns(UserWarning, match=message):
        _train(model, optimizer, 1)
    _train(model, optimizer, 2)  # not said again
    plain = _sparse()
    other = sparsefx.SparseMomentum(SGD(plain.parameters(), 0.1), plain, cycles=4, grow=grow)
    other._generator.set_state(optimizer._generator.get_state())
    _train(plain, other, 1)
    _train(plain, other, 2)
    optimizer.cycle()
    other.cycle()
    for one, two in zip(masked_weights(model), masked_weights(plain), strict=True):
        assert torch.equal(one.mask, two.mask)


def test_a_scale_of_another_form_is_left_out() -> None:
    model = _sparse()
    inner = Kept(model.parameters(), "exp_avg", torch.clone)
    optimizer = sparsefx.SparseMomentum(inner, model, cycles=4)
    _train(model, optimizer, 2)
    for weight in model.parameters():
        inner.state[weight]["exp_avg_sq"] = (weight.detach().amax(), weight.detach())
    optimizer.cycle()
    check_invariant(model)


def test_the_momentum_of_an_optimizer_inside_is_read() -> None:
    model = _sparse()
    optimizer = sparsefx.SparseMomentum(Sam(model.parameters()), model, cycles=3)
    optimizer.zero_grad()
    _loss(model).backward()
    optimizer.step(lambda: _loss(model).backward())
    assert all(keeps_momentum(optimizer.wrapped, masked.weight) for masked in masked_weights(model))


def test_lookahead_inside_goes_back_to_masked_weights() -> None:
    model = _sparse()
    optimizer = sparsefx.SparseMomentum(
        Lookahead(SGD(model.parameters(), lr=0.1, momentum=0.9)), model, cycles=9, every=2
    )
    for _ in range(10):
        _train(model, optimizer, 1)
        check_invariant(model)
        for masked in masked_weights(model):
            assert not (optimizer.state[masked.weight]["cached_params"] * ~masked.mask).any()


def test_lookahead_around_the_wrapper_is_told_to_go_inside() -> None:
    model = _sparse()
    sgd = SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = Lookahead(sparsefx.SparseMomentum(sgd, model, cycles=9, every=4))
    with pytest.warns(UserWarning, match=r"set outside their masks.*SparseMomentum\(Lookahead\(sgd\), model"):
        _train(model, optimizer, 12)


def test_timms_lookahead_around_the_wrapper_stays_masked() -> None:
    lookahead = pytest.importorskip("timm.optim.lookahead")
    model = _sparse()
    sgd = SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = lookahead.Lookahead(sparsefx.SparseMomentum(sgd, model, cycles=9, every=4), k=3)
    for _ in range(12):
        _train(model, optimizer, 1)
        check_invariant(model)


def test_edits_between_steps_are_told_once() -> None:
    model = _sparse()
    optimizer = sparsefx.SparseMomentum(SGD(model.parameters(), 0.1), model, cycles=9)
    _train(model, optimizer, 2)
    with torch.no_grad():
        masked_weights(model)[0].weight.add_(1)
    with pytest.warns(UserWarning, match=r"weights of 0 and 0 more layers were set outside their masks"):
        _train(model, optimizer, 1)
    with torch.no_grad():
        masked_weights(model)[0].weight.add_(1)
    _train(model, optimizer, 1)
    check_invariant(model)


def test_edits_inside_the_masks_are_nobodys_business() -> None:
    model = _sparse()
    optimizer = sparsefx.SparseMomentum(SGD(model.parameters(), 0.1), model, cycles=9, every=2)
    for _ in range(4):
        _train(model, optimizer, 1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.9)


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


@pytest.mark.parametrize("made", [_sparse, lambda: _copied(_sparse()), lambda: reloaded(_sparse())])
def test_an_optimizer_that_also_trains_another_sparse_model_is_refused(made: Any) -> None:
    one, other = _sparse(), made()
    sgd = SGD([*one.parameters(), *other.parameters()], lr=0.1, momentum=0.9)
    with pytest.raises(ArgumentError, match=r"not in model \(a MaskedLinear \(\d+, \d+\) and 2 more\)"):
        sparsefx.SparseMomentum(sgd, one, cycles=3)
    both = nn.ModuleList([one, other])
    optimizer = sparsefx.SparseMomentum(sgd, both, cycles=3)
    (_loss(one) + _loss(other)).backward()
    optimizer.step()
    optimizer.cycle()
    check_invariant(both)


def test_a_group_with_weights_of_another_sparse_model_is_refused() -> None:
    one, other = _sparse(), _sparse()
    optimizer = sparsefx.SparseMomentum(SGD(one.parameters(), lr=0.1), one, cycles=3)
    with pytest.raises(ArgumentError, match="not in model"):
        optimizer.add_param_group({"params": list(other.parameters())})
    assert len(optimizer.param_groups) == 1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch is older than Muon")
def test_two_optimizers_share_a_model_by_its_layers() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU())
    model = sparsefx.sparsify(nn.Sequential(*conv, nn.Linear(8, 1)), 0.5)
    linear = nn.ModuleList([model.get_submodule("3"), model.get_submodule("5")])
    hidden = [layer.weight for layer in linear]
    rest = [p for p in model.parameters() if all(p is not weight for weight in hidden)]
    muon, adamw = torch.optim.Muon(hidden, lr=0.02), torch.optim.AdamW(rest, lr=0.01)
    with pytest.raises(ArgumentError, match=r"masked weights of 0; .* nn.ModuleList\(layers_of_muon\)"):
        sparsefx.SparseMomentum(muon, model, cycles=3)
    optimizers = [
        sparsefx.SparseMomentum(muon, linear, cycles=3),
        sparsefx.SparseMomentum(adamw, nn.ModuleList([model.get_submodule("0")]), cycles=3),
    ]
    active = total_active(model)
    for seed in range(6):
        x = _batch(seed)[:, None]
        (model(x) - x.sum(2)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
            if seed % 2:
                optimizer.cycle()
        check_invariant(model)
    assert total_active(model) == active
