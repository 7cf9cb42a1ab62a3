"""What a training step costs by each method, next to the dense step it replaces.

    python benchmarks/method_overhead.py
    python benchmarks/method_overhead.py --network lenet5-caffe --methods rigl set --repeats 50 --json FILE

All methods take turns with the dense network, step by step: zero_grad, forward, loss, penalty, backward
and step. An update of the masks is timed apart from the steps without one. The medians' ratio to the
dense step is printed; the update also as what it adds to a step in the mean, at the method's own timing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sparsefx import METHODS, Training, method
from sparsefx._common.table import format_table
from sparsefx.experiments.networks import NETWORKS, Network

EPOCH = 540  # steps of an epoch on MNIST, for methods that update once an epoch
EPOCHS = 100
MASKING = [name for name, row in METHODS.items() if row.first_masks.masks]


@dataclass(frozen=True)
class Overhead:
    """The cost of one method.

    Attributes:
        name: the method.
        step: median step without an update, or with it if every step has one, in dense steps.
        update: median update of the masks, in dense steps; None where no step of the runs had one.
        every: steps between updates; None if there are none.
    """

    name: str
    step: float
    update: float | None
    every: int | None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="lenet-300-100", choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=MASKING, choices=MASKING)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=60, help="steps of each method (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = NETWORKS[options.network]
    x = torch.randn(options.batch_size, *network.input_shape)
    batch = (x, torch.arange(options.batch_size) % 10)
    found = [measure(name, network, batch, options.density, options.repeats) for name in options.methods]
    rows = [[one.name, f"{one.step:.2f}x", *_update_cells(one)] for one in found]
    header = ["method", "step", "an update, in dense steps", "every", "adds to a step"]
    print(format_table(header, rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


def _update_cells(one: Overhead) -> list[str]:
    if one.update is None or one.every is None:
        return ["", "" if one.every is None else str(one.every), ""]
    return [f"{one.update:.2f}", str(one.every), f"{100 * one.update / one.every:.2f}%"]


def measure(
    name: str, network: Network, batch: tuple[torch.Tensor, torch.Tensor], density: float, repeats: int
) -> Overhead:
    """Time one method against the dense network."""
    dense, other = start("dense", network, batch, 1.0), start(name, network, batch, density)
    if other.method.rounds is not None:
        other.next_round()
    every = _period(other)
    always = every == 1  # then an update is a part of the step
    own: list[float] = []
    reference: list[float] = []
    for _ in range(repeats):
        reference.append(timed_step(dense, batch))
        before = other.optimizer.steps_done
        seconds = timed_step(other, batch)
        if always or not other.optimizer.history or other.optimizer.history[-1].step <= before:
            own.append(seconds)
    base = statistics.median(reference[5:])
    rules, update = other.optimizer.rules, None
    if rules.updates and not always:
        update = statistics.median(timed_update(other) for _ in range(max(3, repeats // 10))) / base
    return Overhead(name, statistics.median(own[5:]) / base, update, every)


def start(name: str, network: Network, batch: tuple[torch.Tensor, torch.Tensor], density: float) -> Training:
    """The method on a new network, with SGD and momentum."""
    torch.manual_seed(0)

    def make(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.01, 0.9, weight_decay=5e-4, nesterov=True)  # type: ignore[arg-type]

    steps = EPOCH * EPOCHS
    model: nn.Module = network.build()
    return Training(
        method(name, density=density),
        model,
        make,
        steps=steps,
        epoch_steps=EPOCH,
        batches=[batch],
        samples=54_000,
    )


def timed_step(training: Training, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    training.optimizer.zero_grad()
    (F.cross_entropy(training.model(batch[0]), batch[1]) + training.penalty()).backward()
    training.optimizer.step()
    return time.perf_counter() - began


def timed_update(training: Training) -> float:
    """Seconds of one update of the masks."""
    began = time.perf_counter()
    training.optimizer.cycle()
    return time.perf_counter() - began


def _period(training: Training) -> int | None:
    timing = training.method.timing
    if timing is None or not training.optimizer.rules.updates:
        return None
    if isinstance(timing.every, tuple):
        return timing.every[0][1]
    return timing.epochs * EPOCH if timing.every == "epoch" else timing.every


if __name__ == "__main__":
    main()
