"""What a sparse training step costs: its time and its memory, next to the dense step it replaces.

    python benchmarks/step_overhead.py
    python benchmarks/step_overhead.py --model vgg16 --repeats 100 --json overhead.json

Two copies of one network take turns, one dense with SGD, one sparse with ``SparseMomentum`` around
the same SGD. A step is zero_grad, forward, loss, backward and step; the cycle, once an epoch, is timed
by itself. Memory is what persists between steps: parameters, buffers and optimizer state (the sparse
one's holds a random generator of 5 kB besides).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50

import sparsefx
from sparsefx.experiments.networks import network_name

WARM_UP = 5


@dataclass(frozen=True)
class Case:
    """A network and the batch it is timed on.

    Attributes:
        network: builds the dense network; 10 classes.
        batch: shape of the input.
        repeats: timed steps of each of the two copies.
    """

    network: Callable[[], nn.Module]
    batch: tuple[int, ...]
    repeats: int


def lenet300_100() -> nn.Module:
    """LeNet 300-100."""
    return nn.Sequential(
        *(nn.Linear(784, 300), nn.ReLU()),
        *(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def vgg16() -> nn.Module:
    """VGG-16 with BatchNorm for images of 32x32, one linear layer at the end."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 10))


CASES = {
    "lenet-300-100": Case(lenet300_100, (100, 784), 2000),
    "vgg16": Case(vgg16, (128, 3, 32, 32), 20),
    "resnet-50": Case(lambda: resnet50(num_classes=10), (8, 3, 64, 64), 40),
}


@dataclass(frozen=True)
class Overhead:
    """The measurement of one case.

    Attributes:
        dense_ms: median time of a dense step.
        sparse_ms: median time of a sparse step.
        speed: dense over sparse time; 1 is free, 0.99 is 1% slower. The median over turns of the
            ratio within a turn, which a drift of the machine's speed does not move.
        pass_ms: median time of one pass that reads and writes every masked weight: what anything that
            touches the weights once more must cost, so dense / (dense + pass) bounds ``speed``.
        cycle_ms: median time of one prune, redistribute and grow.
        weights: how many weights have a mask.
        extra_bytes_per_weight: persistent bytes of the sparse copy beyond the dense one's.
    """

    model: str
    dense_ms: float
    sparse_ms: float
    speed: float
    pass_ms: float
    cycle_ms: float
    weights: int
    extra_bytes_per_weight: float


@dataclass(frozen=True)
class Trainer:
    """A network, its optimizer and the batch it sees at every step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor

    def step(self) -> float:
        """Milliseconds of one training step."""
        self._synchronize()
        began = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self._synchronize()
        return 1000 * (time.perf_counter() - began)

    def persistent_bytes(self) -> int:
        """Bytes of parameters, buffers and optimizer state."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += tensors_in(self.optimizer.state_dict())
        return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())

    def _synchronize(self) -> None:
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of both copies."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def measure(name: str, options: argparse.Namespace) -> Overhead:
    """Time both copies of one network, taking turns."""
    case = CASES[name]
    torch.manual_seed(0)
    network = case.network()
    x = torch.randn(case.batch, device=options.device)
    y = torch.randint(10, (len(x),), device=options.device)
    model = copy.deepcopy(network).to(options.device)
    dense = Trainer(model, sgd(model), x, y)
    model = sparsefx.sparsify(network, density=options.density).to(options.device)
    optimizer = sparsefx.SparseMomentum(sgd(model), model, cycles=1000)
    sparse = Trainer(model, optimizer, x, y)
    steps = WARM_UP + (options.repeats or case.repeats)
    turns = [(dense.step(), sparse.step()) for _ in range(steps)][WARM_UP:]
    weights = sum(layer.numel for layer in optimizer.cycle().layers)
    return Overhead(
        model=name,
        dense_ms=statistics.median(turn[0] for turn in turns),
        sparse_ms=statistics.median(turn[1] for turn in turns),
        speed=statistics.median(turn[0] / turn[1] for turn in turns),
        pass_ms=statistics.median(pass_ms(sparse) for _ in range(20)),
        cycle_ms=statistics.median(cycle_ms(sparse, optimizer) for _ in range(options.cycles)),
        weights=weights,
        extra_bytes_per_weight=(sparse.persistent_bytes() - dense.persistent_bytes()) / weights,
    )


def pass_ms(sparse: Trainer) -> float:
    """Milliseconds of one pass that reads and writes every masked weight, right after a step."""
    weights = [masked.weight.detach() for masked in sparsefx.masked_weights(sparse.model)]
    sparse.step()
    began = time.perf_counter()
    for weight in weights:
        weight.neg_()
    return 1000 * (time.perf_counter() - began)


def cycle_ms(sparse: Trainer, optimizer: sparsefx.SparseMomentum) -> float:
    """Milliseconds of one cycle, after a step."""
    sparse.step()
    began = time.perf_counter()
    optimizer.cycle()
    return 1000 * (time.perf_counter() - began)


def print_row(row: Overhead) -> None:
    """Print one line of the table."""
    print(
        f"{row.model:14}{row.dense_ms:>12.3f}{row.sparse_ms:>12.3f}{row.speed:>14.4f}"
        f"{row.pass_ms:>12.3f}{row.cycle_ms:>12.1f}{row.weights:>14,}{row.extra_bytes_per_weight:>16.4f}",
        flush=True,
    )


def main() -> None:
    """Measure and print the cases asked for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "--model", type=network_name, choices=CASES, action="append", help="repeatable; default: all"
    )
    parser.add_argument("--repeats", type=int, help="timed steps of each copy; default: by model")
    parser.add_argument("--cycles", type=int, default=3, help="timed cycles (default: %(default)s)")
    parser.add_argument("--density", type=float, default=0.1, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads\n")
    print(
        f"{'':14}{'dense, ms':>12}{'sparse, ms':>12}{'dense/sparse':>14}"
        f"{'one pass, ms':>12}{'cycle, ms':>12}{'weights':>14}{'bytes/weight':>16}"
    )
    rows = []
    for name in options.model or CASES:
        rows.append(measure(name, options))
        print_row(rows[-1])
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
