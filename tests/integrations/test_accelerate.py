"""A loop that Accelerate prepares."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from helpers import assert_same, masked_mlp
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.integrations import cycle_metrics
from sparsefx.integrations.accelerate import cycle_log, sparse_optimizer


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate keeps one precision a process, whoever set it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Kept(GeneralTracker):
    """Keeps what it is told."""

    name, requires_logging_directory = "kept", False

    def __init__(self):
        super().__init__()
        self.told = []

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        self.told.append((step, values))


class Run:
    """A small training."""

    def __init__(self, *, accumulate=1, precision="no", prepared=False, epochs=4, **changes):
        self.tracker, self.epochs = Kept(), epochs
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision, log_with=self.tracker
        )
        self.accelerator.init_trackers("runs")
        x = torch.randn(100, 10, generator=torch.Generator().manual_seed(1))
        loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10)
        if prepared:
            loader = self.accelerator.prepare(loader)
        model = masked_mlp(10, 32, 2, density=0.2)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparse = sparse_optimizer(self.accelerator, sgd, model, loader, epochs=epochs, **changes)
        schedule = torch.optim.lr_scheduler.StepLR(sparse, 10, gamma=0.5)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, sparse, loader, schedule
        )
        self.log = cycle_log(self.accelerator, self.optimizer)
        self.active = set()

    @property
    def sparse(self):
        return self.optimizer.optimizer

    def train(self, first=0, last=None):
        for _ in range(first, self.epochs if last is None else last):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(F.cross_entropy(self.model(x), y))
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
                    self.log.update()
                masked = sparsefx.masked_weights(self.model)
                assert all(m.is_enforced() for m in masked)
                self.active.add(sum(int(m.mask.sum()) for m in masked))
        return self


@pytest.mark.parametrize(
    ("options", "steps", "every"),
    [
        ({}, 40, 4),
        ({"accumulate": 3}, 16, 2),
        ({"precision": "bf16"}, 40, 4),
        ({"prepared": True}, 40, 4),
        ({"epochs": 10}, 100, 10),
        ({"method": "rigl", "every": 5, "last": 1.0}, 40, 5),
    ],
)
def test_the_planned_cycles_and_the_density_at_every_step(options, steps, every):
    run = Run(**options).train()
    assert run.sparse.steps_done == steps
    assert [record.step for record in run.sparse.history] == [*range(every, steps, every)]
    assert len(run.active) == 1
    assert run.schedule.get_last_lr()[0] == pytest.approx(0.1 * 0.5 ** (steps // 10))


def test_each_cycle_goes_to_the_trackers():
    run = Run().train()
    assert [step for step, _ in run.tracker.told] == [record.step for record in run.sparse.history]
    assert run.tracker.told[-1][1] == cycle_metrics(run.optimizer)
    json.dumps(run.tracker.told)


def test_saved_and_loaded_state_goes_on_bit_for_bit(tmp_path):
    whole = Run().train()
    half = Run().train(last=2)
    half.accelerator.save_state(str(tmp_path))
    resumed = Run()
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(first=2)
    assert whole.sparse.history == resumed.sparse.history
    for one, other in ((whole.model, resumed.model), (whole.optimizer, resumed.optimizer)):
        assert_same(one.state_dict(), other.state_dict())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def test_wrong_arguments_are_named():
    accelerator = Accelerator(cpu=True)
    model = masked_mlp(4, 4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="batches: DataLoader has no length"):
        sparse_optimizer(accelerator, sgd, model, DataLoader(Stream()), epochs=1)
    with pytest.raises(ArgumentError, match="steps=0 is not a whole number of at least 1"):
        sparse_optimizer(accelerator, sgd, model, [0, 1], epochs=0)
    with pytest.raises(ArgumentError, match=r"optimizer went through accelerator\.prepare\(\) already"):
        sparse_optimizer(accelerator, accelerator.prepare(sgd), model, [0, 1], epochs=1)
