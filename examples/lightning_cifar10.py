"""Train a sparse ResNet-18 on CIFAR-10 with Lightning, export it, and compare.

    pip install '.[lightning,vision]'
    python examples/lightning_cifar10.py --root DATA
    python examples/lightning_cifar10.py --small          # made images, seconds: to see that it runs

``DATA`` holds what ``torchvision.datasets.CIFAR10(DATA, download=True)`` leaves there, or a folder of images
a class in ``train`` and ``test``. Of sparsefx there are three lines: ``sparsify``, the callback, ``export``.
After a kill, ``--resume RUNS/last.ckpt`` goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet

import sparsefx
from sparsefx.experiments.data.augment import CropsAndFlips, crop_and_flip
from sparsefx.experiments.data.cifar10 import read_cifar10
from sparsefx.experiments.data.normalise import CIFAR10
from sparsefx.integrations import cycle_metrics
from sparsefx.integrations.lightning import SparseCallback


def network(small: bool) -> nn.Module:
    """ResNet-18 for images of 32x32: a 3x3 convolution first, and no pooling after it; small, ResNet-10."""
    net = ResNet(BasicBlock, [1, 1, 1, 1] if small else [2, 2, 2, 2], num_classes=10)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    model: nn.Module = net
    return model


class Classifier(LightningModule):
    """An ordinary module; that its network is sparse shows in one line.

    Args:
        density: fraction of the weights of convolutions and linear layers that are active, in (0, 1].
        lr: learning rate of SGD, falling to 0 by a cosine.
        small: whether the network is.
    """

    def __init__(self, density: float, lr: float, small: bool) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = sparsefx.sparsify(network(small), density=density, dense="conv1")
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        """Pixels, uint8 (N, 3, H, W), to logits (N, 10)."""
        logits: Tensor = self.net(CIFAR10.on(self.device)(images))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch, of images moved by up to 4 pixels, half of them mirrored."""
        images, labels = batch
        where = CropsAndFlips.draw(len(images), torch.default_generator).to(images.device)
        loss = F.cross_entropy(self(crop_and_flip(images, where)), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        """As for a dense network; the callback wraps it."""
        sgd = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        epochs = self.trainer.max_epochs
        return {"optimizer": sgd, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs)}


def data(root: Path | None) -> tuple[TensorDataset, TensorDataset]:
    """CIFAR-10 under ``root``; without it a few made images of 16x16, each class a brightness."""
    if root is not None:
        images = read_cifar10(root)
        return TensorDataset(*images.train), TensorDataset(*images.test)
    labels = torch.arange(60) % 10
    noise = torch.randint(0, 30, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    made = (noise + 22 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return TensorDataset(made[:40], labels[:40]), TensorDataset(made[40:], labels[40:])


def main() -> None:
    """Train, export, compare."""
    options = arguments()
    seed_everything(options.seed)
    train, test = data(None if options.small else options.root)
    trainer = Trainer(
        max_epochs=options.epochs,
        callbacks=[SparseCallback(), ModelCheckpoint(options.runs, save_last=True)],
        logger=CSVLogger(options.runs, name="", version=""),
        precision=options.precision,
        accelerator="cpu" if options.small else "auto",
        devices=1,
        log_every_n_steps=1 if options.small else 50,
    )
    model = Classifier(options.density, options.lr, options.small)
    loaders = [
        DataLoader(split, options.batch_size, shuffle=split is train, drop_last=split is train)
        for split in (train, test)
    ]
    trainer.fit(model, *loaders, ckpt_path=options.resume)

    model.cpu().eval()
    inputs = CIFAR10.on(model.device)(test.tensors[0][:8])
    compact = sparsefx.export(model.net, (inputs,))
    with torch.no_grad():
        expected, actual = model.net(inputs), compact(inputs)
    difference = ((actual - expected).abs().max() / expected.abs().max()).item()
    sparsefx.save(compact, options.runs / "compact.safetensors")
    density = cycle_metrics(trainer.optimizers[0])["sparse/density"]
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, compact))
    print(f"density {density:.4f}, parameters {before:,} -> {after:,}")
    print(f"largest difference of an output {difference:.1e} of the largest output")
    print(f"metrics of every cycle: {options.runs / 'metrics.csv'}")


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, help="the folder that holds CIFAR-10")
    add("--small", action="store_true", help="made images and two epochs")
    add("--epochs", type=int, help="default: 100, or 2 with --small")
    add("--density", type=float, default=0.1, help="default: %(default)s")
    add("--lr", type=float, default=0.1, help="default: %(default)s")
    add("--batch-size", type=int, help="default: 128, or 10 with --small")
    add("--precision", default="32-true", help="bf16-mixed, 16-mixed; default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--runs", type=Path, default=Path("runs/lightning"), help="for checkpoints and metrics")
    add("--resume", type=Path, help="a checkpoint to go on from")
    options = parser.parse_args()
    if not options.small and options.root is None:
        parser.error("--root DATA is needed, or --small")
    options.epochs = options.epochs or (2 if options.small else 100)
    options.batch_size = options.batch_size or (10 if options.small else 128)
    return options


if __name__ == "__main__":
    main()
