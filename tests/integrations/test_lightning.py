"""SparseCallback in a Lightning Trainer: what a user has there goes on working."""

import csv
import math

import lightning.pytorch as lightning
import pytest
import torch
from helpers import assert_same
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.integrations import cycle_metrics
from sparsefx.integrations.lightning import SparseCallback

pytestmark = [
    # Lightning reads pytrees by a name that newer torch calls deprecated.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # Data of a few rows needs no processes of its own to load it.
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers:UserWarning"),
    # A run that goes on writes where the one before it did.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]
DENSITY = 0.2


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Module(lightning.LightningModule):
    """A sparse network; keeps the density seen in every batch."""

    def __init__(self, dropout=0.5):
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 2))
        self.net = sparsefx.sparsify(net, density=DENSITY)
        self.densities = []
        self.broken = 0

    def training_step(self, batch, index):
        masked = sparsefx.masked_weights(self)
        self.densities.append(sum(int(m.mask.sum()) for m in masked))
        self.broken += sum(not m.is_enforced() for m in masked)
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        sgd = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [sgd], [torch.optim.lr_scheduler.StepLR(sgd, 2, gamma=0.5)]


class Validated(Module):
    def validation_step(self, batch, index):
        x, y = batch
        self.log("validation", F.cross_entropy(self.net(x), y))


def loader(rows=100, seed=1, **options):
    x = torch.randn(rows, 10, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=10, **options)


def trainer(folder, *callbacks, epochs=4, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1, **quiet, **options}
    return lightning.Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=list(callbacks), **options)


def rows_of(logger):
    """What a logger heard of cycles."""
    with open(logger.log_dir + "/metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("sparse/cycle")]


def steps_of(optimizer):
    return [record.step for record in optimizer.history]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 40),
        ({"accumulate_grad_batches": 3}, 16),
        ({"gradient_clip_val": 0.1}, 40),
        ({"precision": "bf16-mixed"}, 40),
        ({"max_steps": 25}, 25),
    ],
)
def test_the_planned_cycles_and_the_density_at_every_step(tmp_path, options, steps):
    module, run = Module(), trainer(tmp_path, SparseCallback(), **options)
    run.fit(module, loader())
    (optimizer,) = run.optimizers
    every = math.ceil(steps / 10)
    assert optimizer.steps_done == run.global_step == steps
    assert steps_of(optimizer) == [*range(every, steps, every)]
    assert len(set(module.densities)) == 1
    assert not module.broken
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5 ** ((run.current_epoch) // 2)


def test_a_long_training_has_a_cycle_after_each_epoch_but_the_last(tmp_path):
    run = trainer(tmp_path, SparseCallback(), epochs=10)
    run.fit(Module(), loader(rows=30))
    assert steps_of(run.optimizers[0]) == [*range(3, 30, 3)]


@pytest.mark.parametrize(
    ("changes", "mid_epoch"),
    [
        ({}, True),
        ({"method": "rigl", "every": 3}, False),
        slow({}, False),
        slow({"method": "rigl", "every": 3}, True),
        slow({"method": "set"}, False),
        slow({"method": "set"}, True),
    ],
)
def test_resumed_training_ends_bit_for_bit_the_same(tmp_path, changes, mid_epoch):
    when = {"every_n_train_steps": 15} if mid_epoch else {"every_n_epochs": 2}
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", save_last=False, **when)

    def run(**options):
        run = trainer(tmp_path, SparseCallback(**changes), Seeded(), keep, enable_checkpointing=True)
        module = Module()
        run.fit(module, Resumable(), **options)
        return module, run.optimizers[0]

    module, optimizer = run()
    resumed, its_optimizer = run(ckpt_path=tmp_path / f"step={15 if mid_epoch else 20}.ckpt")
    assert optimizer.history == its_optimizer.history
    assert optimizer.history
    for one, other in ((module, resumed), (optimizer, its_optimizer)):
        assert_same(one.state_dict(), other.state_dict())


class Resumable:
    """Batches that say where they are, as Lightning wants it for checkpoints within an epoch."""

    def __init__(self):
        self.batches, self.done = list(loader()), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for index in range(self.done % len(self.batches), len(self.batches)):
            self.done = index + 1
            yield self.batches[index]

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


class Seeded(lightning.Callback):
    """Lightning saves no random state: seed each step, so that dropout draws the same after a resume."""

    def on_train_batch_start(self, trainer, *_):
        torch.manual_seed(trainer.global_step)


def test_a_checkpoint_loads_into_a_fresh_sparse_model(tmp_path):
    module, run = Module(), trainer(tmp_path, SparseCallback())
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "end.ckpt")
    fresh = Module.load_from_checkpoint(tmp_path / "end.ckpt")
    for one, other in zip(sparsefx.masked_weights(module), sparsefx.masked_weights(fresh), strict=True):
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.weight, other.weight)


def test_all_loggers_get_the_metrics_of_each_cycle(tmp_path):
    logger = CSVLogger(tmp_path)
    run = trainer(tmp_path, SparseCallback(), logger=logger, log_every_n_steps=10)
    run.fit(Module(), loader())
    rows = rows_of(logger)
    assert [(int(row["step"]), int(row["sparse/cycle"])) for row in rows] == [
        (record.step, record.cycle) for record in run.optimizers[0].history
    ]
    last = cycle_metrics(run.optimizers[0])
    assert {name: float(rows[-1][name]) for name in last} == pytest.approx(last)


def test_resumed_training_logs_only_new_cycles(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, SparseCallback(), keep, epochs=2, enable_checkpointing=True).fit(Module(), loader())
    logger = CSVLogger(tmp_path / "logs")
    run = trainer(tmp_path, SparseCallback(layers=False), keep, logger=logger, enable_checkpointing=True)
    run.fit(Module(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    rows = rows_of(logger)
    assert [int(row["step"]) for row in rows] == [24, 28, 32, 36]
    assert not any(name.startswith("density/") for name in rows[0])


class Averaged(Module):
    """Sees the average in its validation."""

    def validation_step(self, batch, index):
        masked = sparsefx.masked_weights(self)
        self.broken += sum(not m.is_enforced() for m in masked)
        self.densities.append(sum(int(m.mask.sum()) for m in masked))


AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.9, use_buffers=False),
    "ema of buffers": lambda: EMAWeightAveraging(decay=0.9, use_buffers=True),
    "mean of buffers": lambda: WeightAveraging(use_buffers=True),
    "swa": lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1),
}


@pytest.mark.parametrize(
    ("kind", "sparse_first"),
    [
        ("ema", True),
        ("ema of buffers", False),
        ("mean of buffers", True),
        ("swa", False),
        slow("ema", False),
        slow("ema of buffers", True),
        slow("mean of buffers", False),
        slow("swa", True),
    ],
)
def test_averaged_weights_are_as_sparse(tmp_path, kind, sparse_first):
    callbacks = [AVERAGES[kind](), SparseCallback()]
    callbacks = callbacks[::-1] if sparse_first else callbacks
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", every_n_epochs=1)
    module, run = Averaged(), trainer(tmp_path, *callbacks, keep, enable_checkpointing=True)
    run.fit(module, loader(), loader(20, seed=2))
    assert not module.broken
    assert len(set(module.densities)) == 1
    masked = sparsefx.masked_weights(module)
    assert sum(int(m.mask.sum()) for m in masked) == module.densities[0]
    assert all(m.is_enforced() for m in masked)
    assert sum(int(m.mask.sum()) for m in masked) == sum(
        layer.active for layer in run.optimizers[0].history[-1].layers
    )
    for file in tmp_path.glob("*.ckpt"):
        saved = torch.load(file, weights_only=False)["state_dict"]
        for name in [name for name in saved if name.endswith("mask")]:
            assert not saved[name.removesuffix("mask") + "weight"][~saved[name]].any()
        assert sum(int(saved[name].sum()) for name in saved if name.endswith("mask")) == module.densities[0]


@pytest.mark.parametrize("changes", [{}, {"every": 100}, {"method": "static"}])
@pytest.mark.parametrize("steps", [1, 3])
def test_fast_dev_run_rehearses_cycles(tmp_path, changes, steps):
    module, run = Module(), trainer(tmp_path, SparseCallback(**changes), fast_dev_run=steps)
    run.fit(module, loader())
    assert steps_of(run.optimizers[0]) == ([] if "method" in changes else [*range(1, steps + 1)])
    assert not module.broken
    assert all(m.is_enforced() for m in sparsefx.masked_weights(module))


def test_early_stopping_stops(tmp_path):
    stop = EarlyStopping("validation", stopping_threshold=10.0)
    module, run = Validated(), trainer(tmp_path, SparseCallback(), stop)
    run.fit(module, loader(), loader(20, seed=2))
    assert run.optimizers[0].steps_done == 10
    assert sparsefx.export(module.net.eval(), (torch.ones(2, 10),))(torch.ones(2, 10)).shape == (2, 2)


def test_fitting_twice_begins_anew(tmp_path):
    module, callback = Module(), SparseCallback(every=10)
    for _ in range(2):
        run = trainer(tmp_path, callback, epochs=2)
        run.fit(module, loader())
        assert steps_of(run.optimizers[0]) == [10]


class Own(Module):
    """Wraps its optimizer itself, and calls cycle() through what Lightning hands out for it."""

    def configure_optimizers(self):
        sgd = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return sparsefx.SparseMomentum(sgd, self, cycles=self.trainer.max_epochs)

    def on_train_epoch_end(self):
        self.optimizers().cycle()


def test_an_optimizer_that_is_sparse_already_is_left_alone(tmp_path):
    logger, module = CSVLogger(tmp_path), Own()
    run = trainer(tmp_path, SparseCallback(), logger=logger)
    run.fit(module, loader())
    optimizer = run.optimizers[0]
    assert type(optimizer) is sparsefx.SparseMomentum
    assert [(r.cycle, r.step) for r in optimizer.history] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert optimizer.state_dict()["sparse_momentum"]["cycle"] == 4
    assert len(set(module.densities)) == 1
    assert [row["sparse/cycle"] for row in rows_of(logger)] == ["1", "2", "3", "4"]


def test_without_the_callback_it_trains_too(tmp_path):
    run = trainer(tmp_path)
    run.fit(Own(), loader())
    assert steps_of(run.optimizers[0]) == [10, 20, 30, 40]


class Manual(Module):
    """Steps by itself, twice for each batch."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            optimizer.step()


def test_manual_optimization(tmp_path):
    module, run = Manual(), trainer(tmp_path, SparseCallback("rigl", every=10))
    run.fit(module, loader())
    assert run.optimizers[0].steps_done == 80
    assert not module.broken


class Two(Module):
    """Has two optimizers."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[3])]


class Dense(Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(10, 2)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Two, {}, "returned 2 optimizers, and SparseCallback wraps a single one"),
        (Dense, {}, r"no masked weights; pass it through sparsefx\.sparsify first"),
        (Module, {"epochs": -1}, "max_epochs=-1, max_steps=-1: SparseCallback must know how long"),
        (
            Module,
            {"epochs": 1, "callback": SparseCallback(every=10)},
            "every=10: .* no cycle in 10 optimizer",
        ),
    ],
)
def test_what_cannot_work_is_told_when_training_begins(tmp_path, module, options, message):
    options = dict(options)
    run = trainer(tmp_path, options.pop("callback", SparseCallback()), **options)
    network = module()
    if isinstance(network, Two):
        network.net = nn.Sequential(*network.net.children())
    with pytest.raises(ArgumentError, match=message):
        run.fit(network, loader())


def test_a_method_that_needs_more_is_refused_at_once():
    with pytest.raises(ArgumentError, match="method='lottery-ticket' trains in rounds"):
        SparseCallback("lottery-ticket")
    with pytest.raises(ArgumentError, match="method='soft-deep-r' stores inactive weights"):
        SparseCallback("soft-deep-r")


class FineTuned(Module):
    """A backbone that is frozen at first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = sparsefx.sparsify(nn.Sequential(nn.Linear(10, 32), nn.ReLU()), density=DENSITY)
        self.head = sparsefx.sparsify(nn.Sequential(nn.Linear(32, 2)), density=DENSITY)
        self.net = nn.Sequential(self.backbone, self.head)

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)


class Unfreeze(BackboneFinetuning):
    """Lightning's own leaves the backbone frozen where training goes on after it was unfrozen."""

    def on_train_start(self, trainer, pl_module):
        if trainer.current_epoch > self.unfreeze_backbone_at_epoch:
            self.make_trainable(pl_module.backbone)


@pytest.mark.parametrize("sparse_first", [False, True])
@pytest.mark.filterwarnings("ignore:.*already exist within another group:UserWarning")
def test_a_backbone_that_is_unfrozen_later_is_masked_and_resumes(tmp_path, sparse_first):
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", every_n_epochs=1)

    def run(**options):
        callbacks = [Unfreeze(unfreeze_backbone_at_epoch=1), SparseCallback()]
        callbacks = callbacks[::-1] if sparse_first else callbacks
        module, run = FineTuned(), trainer(tmp_path, *callbacks, keep, enable_checkpointing=True)
        run.fit(module, loader(), **options)
        assert not module.broken
        return module, run

    module, whole = run()
    (optimizer,) = whole.optimizers
    assert len(optimizer.param_groups) == 2
    assert len(optimizer.history[-1].layers) == 2
    resumed, _ = run(ckpt_path=tmp_path / "epoch=2.ckpt")
    assert_same(resumed.state_dict(), module.state_dict())
