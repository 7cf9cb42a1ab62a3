"""``accelerate``: what it refuses, what it leaves as it was, and a training loop on top of it."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsefx
from sparsefx import ArgumentError, accelerate, sparsify
from sparsefx.kernels.training.memory_pool import POOL
from sparsefx.kernels.training.region import TrainingRegion

X = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


@pytest.fixture
def sparse() -> nn.Module:
    torch.manual_seed(0)
    return sparsify(network(), density=0.3, seed=0)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda model: network(), "no masked weights"),
        (lambda model: sparsify(network(), density=0.3, trace=False), "no graph"),
        (lambda model: accelerate(model, (X,), kernels="sparse"), "accelerated already"),
        (lambda model: model.to("meta"), "sparse kernels run on the CPU"),
        (lambda model: torch.nn.DataParallel(model), "wrapped by DataParallel"),
        (lambda model: 3, "must be a torch.nn.Module, got int"),
    ],
)
def test_what_cannot_be_accelerated(sparse: nn.Module, prepare, message: str):
    with pytest.raises(ArgumentError, match=message):
        accelerate(prepare(sparse), (X,), kernels="sparse")


def test_arguments(sparse: nn.Module):
    with pytest.raises(ArgumentError, match="kernels='fast' is none of 'auto', 'sparse'"):
        accelerate(sparse, (X,), kernels="fast")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="example_inputs do not run through the model"):
        accelerate(sparse, (X[:, :2],), kernels="sparse")


def test_a_frozen_norm_stays_frozen(sparse: nn.Module):
    sparse.train().get_submodule("1").eval()
    fast = accelerate(sparse, (X,), kernels="sparse")
    for model in (sparse, fast):
        modes = {name: module.training for name, module in model.named_modules() if name != "region_0"}
        assert [name for name, training in modes.items() if not training] == ["1"]


def test_a_refused_example_leaves_the_model_as_it_was(sparse: nn.Module):
    """The norm comes before the layer that cannot take the example."""
    before, drawn = copy.deepcopy(sparse.train().state_dict()), torch.random.get_rng_state()
    with pytest.raises(ArgumentError, match="do not run"):
        accelerate(sparse, (torch.randn(4, 3, 12, 12, generator=torch.Generator()),), kernels="sparse")
    assert all(torch.equal(sparse.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.random.get_rng_state(), drawn)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_random_numbers_stay_as_they_were(sparse: nn.Module, training: bool):
    sparse.train(training)
    before, drawn = copy.deepcopy(sparse.state_dict()), torch.random.get_rng_state()
    fast = accelerate(sparse, (X,), kernels="sparse")
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert fast.training is training
    for model in (sparse, fast):
        state = model.state_dict()
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert not any(isinstance(module, TrainingRegion) for module in sparse.modules())


def test_an_optimizer_trains_it_as_the_model_itself(sparse: nn.Module):
    fast = accelerate(sparse, (X,), kernels="sparse")
    labels = torch.arange(9) % 4
    for model in (sparse, fast):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(X), labels).backward()
            for weight in sparsefx.masking.masks.masked_weights(model):
                if model is sparse:
                    weight.weight.grad.mul_(weight.mask)
            optimizer.step()
    expected = sparse.state_dict()
    for name, tensor in fast.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    for model in (sparse, fast):
        model.eval()
    torch.testing.assert_close(fast(X), sparse(X), rtol=1e-4, atol=1e-4)


def labels() -> torch.Tensor:
    return torch.arange(9) % 4


def momentum(model: nn.Module, **options: int) -> sparsefx.SparseMomentum:
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return sparsefx.SparseMomentum(sgd, model, cycles=3, every=4, seed=0, **options)


def quiet() -> nn.Module:
    """A sparse network without dropout."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)]
    return sparsify(nn.Sequential(*layers), density=0.3, seed=0)


@pytest.mark.parametrize("window", [0, 1])
def test_clipping_sees_the_norm_of_the_gradients_that_there_are(window: int):
    """Of active weights alone; in the window of all, as without acceleration."""
    plain, fast = quiet(), accelerate(quiet(), (X,), kernels="sparse")
    optimizer = momentum(fast, window=4 * window)
    norms = []
    for model in (plain, fast):
        F.cross_entropy(model(X), labels()).backward()
        for weight in sparsefx.masked_weights(plain) if not window else ():
            if weight.weight.grad is not None:
                weight.weight.grad.mul_(weight.mask)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1e-3))
    torch.testing.assert_close(norms[1], norms[0])
    optimizer.step()


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Also where weights become dense in between, and in the steps around a window."""
    whole, parts = (accelerate(quiet(), (X,), kernels="sparse") for _ in range(2))
    for model, count in ((whole, 1), (parts, 3)):
        optimizer = momentum(model, window=2)
        for _ in range(9):
            optimizer.zero_grad()
            for x, y in zip(X.chunk(count), labels().chunk(count), strict=True):
                (F.cross_entropy(model(x), y) / count).backward()
                model.state_dict()
            optimizer.step()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_averages_exports_and_evaluations_between_steps_change_nothing():
    """An average has the weights' masks; the model and a copy of it go on alike."""
    plain, fast = quiet(), accelerate(quiet(), (X,), kernels="sparse")
    states = []
    for model in (plain, fast):
        average = sparsefx.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        optimizer = momentum(model)
        for _ in range(9):  # a cycle at 4 and at 8, after which there is an export
            optimizer.zero_grad()
            F.cross_entropy(model(X), labels()).backward()
            optimizer.step()
            average.update_parameters(model)
            if model is fast and len(optimizer.history) == 2:
                compact = sparsefx.export(average.module, (X,))
                torch.testing.assert_close(compact(X), average.eval()(X), rtol=1e-4, atol=1e-5)
                model.eval()(X)
                model.train()
        states.append({**model.state_dict(), **{f"average {k}": v for k, v in average.state_dict().items()}})
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_state_dicts_fit_both_ways(sparse: nn.Module):
    fast = accelerate(sparse, (X,), kernels="sparse").eval()
    expected = fast(X)
    file = io.BytesIO()
    torch.save(fast.state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.zero_()
    sparse.load_state_dict(state)
    torch.testing.assert_close(sparse.eval()(X), expected)
    with torch.no_grad():
        for model in (fast, sparse):
            model.get_submodule("6").bias.add_(1)
    fast.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(fast(X), expected + 1)


def test_pickle_keeps_the_regions(sparse: nn.Module):
    fast = accelerate(sparse, (X,), kernels="sparse").eval()
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert any(isinstance(module, TrainingRegion) for module in loaded.modules())
    assert torch.equal(loaded(X), fast(X))


def test_auto_computes_the_same(sparse: nn.Module):
    fast = accelerate(sparse, (X,)).eval()
    torch.testing.assert_close(fast(X), sparse.eval()(X), rtol=1e-4, atol=1e-5)


def test_a_validation_in_inference_mode_comes_before_training(sparse: nn.Module):
    POOL.clear()
    model = accelerate(sparse, (X,), kernels="sparse")
    with torch.inference_mode():
        model.eval()(X)
        model.state_dict()
        model(X)
    for _ in range(2):
        model.train()(X).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Tied(nn.Module):
    """Reads a layer's weight beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        return self.second(y).sum(1, keepdim=True) + y @ self.first.weight + self.second.weight.mean()


def test_weights_that_the_forward_reads_stay_dense() -> None:
    x = torch.randn(9, 6)
    plain = sparsefx.sparsify(Tied(), 0.4, seed=0)
    fast = sparsefx.accelerate(plain, (x,), kernels="sparse")
    for model in (plain, fast):
        model(x).square().sum().backward()
    for (name, expected), (_, actual) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name, rtol=1e-4, atol=1e-5)


def test_a_hook_that_comes_later_is_told_of(sparse: nn.Module):
    model = accelerate(sparse, (X,), kernels="sparse")
    handle = next(m for m in model.modules() if isinstance(m, nn.Linear)).register_forward_hook(print)
    with pytest.warns(UserWarning, match="a MaskedLinear has a hook since it was accelerated"):
        model(X)
    model(X)  # once
    handle.remove()
