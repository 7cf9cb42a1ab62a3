"""Models of ``accelerate`` in trainers of others: they train to what they train to without it."""

import copy

import lightning.pytorch as lightning
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import sparsefx
from sparsefx.integrations import accelerate, transformers
from sparsefx.integrations.lightning import SparseCallback
from sparsefx.masking.packing import packings

pytest.importorskip("llvmlite")
pytestmark = [
    # Lightning reads pytrees by a name that newer torch calls deprecated.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # Data of a few rows needs no processes of its own to load it.
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers:UserWarning"),
    # A run that goes on writes where the one before it did.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]
EPOCHS, EPOCH_STEPS, EVERY, ROWS, BATCH = 2, 5, 3, 40, 4  # gradients of two batches are a step
CYCLES = [3, 6, 9]
METHOD = {"method": "rigl", "every": EVERY, "last": 1.0, "seed": 0}


def network(fast):
    """Of four classes: with two, the gradients of both are equal, and so are the scores of their weights."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 4))
    sparse = sparsefx.sparsify(dense, density=0.3, seed=0)
    return sparsefx.accelerate(sparse, (torch.ones(BATCH, 10),), kernels="sparse") if fast else sparse


def rows():
    x = torch.randn(ROWS, 10, generator=torch.Generator().manual_seed(1))
    return [{"x": one, "labels": index % 4} for index, one in enumerate(x)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def assert_close(one, other):
    states = one.state_dict(), other.state_dict()
    for name, tensor in states[1].items():
        torch.testing.assert_close(states[0][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def assert_same(one, other):
    states = one.state_dict(), other.state_dict()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


class Module(lightning.LightningModule):
    def __init__(self, fast=True):
        super().__init__()
        self.net, self.packed = network(fast), 0

    def training_step(self, batch, index):
        loss = F.cross_entropy(self.net(batch["x"]), batch["labels"])
        self.packed += any(packing.is_packed for packing in packings(self))
        return loss

    def configure_optimizers(self):
        return sgd(self)


def fit(folder, module, *callbacks, resumed=None, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": EPOCHS, **quiet, **options}
    callbacks = [*callbacks, SparseCallback(**METHOD)]
    trainer = lightning.Trainer(default_root_dir=folder, callbacks=callbacks, **options)
    trainer.fit(module, DataLoader(rows(), batch_size=BATCH), ckpt_path=resumed)
    return trainer


def saves(folder):
    return ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="{epoch}")


def test_lightning(tmp_path):
    plain, fast, resumed = Module(fast=False), Module(), Module()
    fit(tmp_path, plain, accumulate_grad_batches=2)
    options = {"accumulate_grad_batches": 2, "enable_checkpointing": True}
    trainer = fit(tmp_path, fast, saves(tmp_path), **options)
    assert [record.step for record in trainer.optimizers[0].history] == CYCLES
    assert fast.packed
    assert_close(fast, plain)
    fit(tmp_path, resumed, saves(tmp_path), resumed=tmp_path / "epoch=0.ckpt", **options)
    assert_same(resumed, fast)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [lambda: EMAWeightAveraging(decay=0.5), lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1)],
)
def test_averages_of_lightning(tmp_path, make):
    plain, fast = Module(fast=False), Module()
    for module in (plain, fast):
        fit(tmp_path, module, make(), max_epochs=4)
    assert_close(fast, plain)


class Classifier(nn.Module):
    """Takes and gives what the Trainer does."""

    def __init__(self, fast=True):
        super().__init__()
        self.net = network(fast)

    def forward(self, x, labels):
        return {"loss": F.cross_entropy(self.net(x), labels)}


def run_trainer(folder, model, resumed=None):
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        save_steps=EPOCH_STEPS,
        learning_rate=0.01,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=rows())
    trainer.add_callback(transformers.SparseCallback(trainer, **METHOD))
    trainer.train(resume_from_checkpoint=resumed)
    return trainer


def test_transformers(tmp_path):
    plain, fast, resumed = Classifier(fast=False), Classifier(), Classifier()
    run_trainer(tmp_path / "plain", plain)
    trainer = run_trainer(tmp_path / "fast", fast)
    assert [record.step for record in trainer.optimizer.optimizer.history] == CYCLES
    assert_close(fast, plain)
    run_trainer(tmp_path / "resumed", resumed, str(tmp_path / "fast" / f"checkpoint-{EPOCH_STEPS}"))
    assert_same(resumed, fast)


class Loop:
    """A loop that Accelerate prepares."""

    def __init__(self, fast=True):
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, loader = network(fast), DataLoader(rows(), batch_size=BATCH)
        optimizer = accelerate.sparse_optimizer(
            self.accelerator, sgd(model), model, loader, epochs=EPOCHS, **METHOD
        )
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)

    def train(self, epochs):
        for _ in range(epochs):
            for batch in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(F.cross_entropy(self.model(batch["x"]), batch["labels"]))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self


def test_accelerate(tmp_path):
    plain, fast = Loop(fast=False).train(EPOCHS), Loop().train(1)
    fast.accelerator.save_state(str(tmp_path))
    saved = copy.deepcopy(fast.train(EPOCHS - 1).model.state_dict())
    assert_close(fast.model, plain.model)
    resumed = Loop()
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(EPOCHS - 1)
    assert all(torch.equal(resumed.model.state_dict()[name], tensor) for name, tensor in saved.items())
    AcceleratorState._reset_state(reset_partial_state=True)
