"""Sparse momentum with the details of its authors' first code, in plain PyTorch: does training survive it?

    python benchmarks/plain_cycle.py --root DATA --network lenet5-caffe --seeds 0 1 2 3 4 --epochs 8

Nothing of sparsefx trains here, so that it can be compared with. What the code of July 2019 does that the
paper (Dettmers & Zettlemoyer 2019) does not say: masks are drawn position by position, no layer is filled by
more than 99%, the prune rate decays to 0.005, weights that did not fit are made up for in later cycles, and
after each cycle the momentum of inactive weights is the mean of the layer's active ones. Recipe and data are
those of ``sparsefx train --data mnist``; initial weights and the order of the data are not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.experiments.data import Data, load_data
from sparsefx.experiments.networks import NETWORKS

EPOCHS = 100  # of the whole recipe, for the decay of the prune rate
MILESTONES = (25_000, 50_000)
FULLEST, SLOWEST, NEARLY_DENSE = 0.99, 0.005, 0.8


def main() -> None:
    """Train, and print the test error after each epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument("--network", default="lenet5-caffe", choices=["lenet5-caffe", "lenet-300-100"])
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    data = load_data("mnist", options.root, validation=6000)
    for seed in options.seeds:
        torch.manual_seed(seed)
        train(seed, NETWORKS[options.network].build(), data, options.density, options.epochs)


def train(seed: int, model: nn.Module, data: Data, density: float, epochs: int) -> None:
    """Train by the recipe of MNIST."""
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, MILESTONES)
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    cycle = Cycle(weights, optimizer, density)
    for epoch in range(1, epochs + 1):
        for inputs, targets in data.train.batches(100, torch.Generator().manual_seed(1000 * seed + epoch)):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            schedule.step()
            cycle.apply_masks()
        print(f"seed {seed}, epoch {epoch}: test error {percent_wrong(model, data):.2f}%", flush=True)
        if epoch < EPOCHS:
            decay = (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
            cycle(SLOWEST + (0.5 - SLOWEST) * decay)


@torch.no_grad()
def percent_wrong(model: nn.Module, data: Data) -> float:
    """Error on the test samples."""
    wrong = sum(int((model(x).argmax(1) != y).count_nonzero()) for x, y in data.test.batches(1000))
    return 100 * wrong / len(data.test)


@dataclass
class Cycle:
    """The masks and what a cycle keeps.

    Attributes:
        weights: of the masked layers.
        optimizer: holds the momentum.
        density: of the random masks.
        masks: bool, of the weights' shapes.
        missing: differences between the wanted and the reached number of weights, of each cycle.
        made_up: how many weights more than were pruned the next cycle grows.
    """

    weights: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    density: float
    masks: dict[str, Tensor] = field(init=False)
    missing: list[float] = field(default_factory=list)
    made_up: float = 0.0

    def __post_init__(self) -> None:
        self.masks = {name: torch.rand(weight.shape) < self.density for name, weight in self.weights.items()}
        self.apply_masks()

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set inactive weights to 0."""
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    def __call__(self, rate: float) -> None:
        """Prune, redistribute and grow."""
        state = self.optimizer.state
        momenta = {name: state[weight]["momentum_buffer"] for name, weight in self.weights.items()}
        means = {name: float(momenta[name][mask].abs().mean()) for name, mask in self.masks.items()}
        shares = {name: mean / sum(means.values()) for name, mean in means.items()}
        removed = {name: self._removed(name, shares[name], rate) for name in self.weights}
        grown = self._grown(shares, removed)
        for name, mask in self.masks.items():
            scores = self.weights[name].detach().abs().masked_fill(~mask, torch.inf).flatten()
            mask.view(-1)[scores.argsort()[: removed[name]]] = False
            scores = momenta[name].abs().masked_fill(mask, -1.0).flatten()
            mask.view(-1)[scores.argsort(descending=True)[: int(grown[name])]] = True
            momenta[name][~mask] = momenta[name][mask].mean()
        self.apply_masks()
        wanted = self.density * sum(weight.numel() for weight in self.weights.values())
        self.missing.append(wanted - sum(int(mask.count_nonzero()) for mask in self.masks.values()))
        self.made_up = 0.25 * self.made_up + 0.75 * self.missing[-1] + sum(self.missing) / len(self.missing)

    def _removed(self, name: str, share: float, rate: float) -> int:
        """How many weights a layer loses: of a dense layer that grows no more than its inactive fraction."""
        mask = self.masks[name]
        active = int(mask.count_nonzero())
        density = active / mask.numel()
        if density > NEARLY_DENSE and share > 1 / len(self.masks):
            rate = min(rate, 1 - density)
        return math.ceil(rate * active)

    def _grown(self, shares: Mapping[str, float], removed: Mapping[str, int]) -> dict[str, float]:
        """How many weights each layer gains; what does not fit goes in equal parts to all, until all fits."""
        total = sum(removed.values()) + self.made_up
        free = {name: int((~mask).count_nonzero()) for name, mask in self.masks.items()}
        room = {name: FULLEST * (free[name] + removed[name]) for name in free}
        grown = {name: float(math.ceil(share * total)) for name, share in shares.items()}
        for _ in range(1000):
            excess = sum(max(0.0, grown[name] - room[name]) for name in grown)
            grown = {name: min(grown[name], room[name]) for name in grown}
            if not excess:
                break
            grown = {name: count + excess / len(grown) for name, count in grown.items()}
        return {name: min(grown[name], room[name]) for name in grown}


if __name__ == "__main__":
    main()
