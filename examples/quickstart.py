"""Train the same network dense and sparse, export the sparse one, and compare the three.

    python examples/quickstart.py
    python examples/quickstart.py --plot curves.png --json result.json
    python examples/quickstart.py --data mnist --root data --model lenet-300-100 --density 0.05

The default is a small convolutional network on scikit-learn's bundled digits, about a minute on two
cores. ``--data mnist`` trains the LeNets of Dettmers & Zettlemoyer (2019) by their recipe: the first
54,000 images, batches of 100, 100 epochs; the accuracy that counts is the last epoch's.

With ``--checkpoint FILE``, a run that was killed goes on from its last whole epoch when it is started
again, and ends with the same weights and masks, bit for bit on the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from tqdm import tqdm

import sparsefx
from sparsefx.experiments.networks import network_name

VARIANTS = ("dense", "sparse")
LATENCY_BATCHES = (1, 64)
SETTINGS = ("data", "model", "epochs", "density", "seed", "threads")  # what a checkpoint depends on


# Data: every image at once, normalised.


@dataclass(frozen=True)
class Data:
    """Images (N, 1, H, W) and their labels (N,)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: str) -> Data:
        """The same data on a device."""
        return Data(*(tensor.to(device) for tensor in vars(self).values()))


def load_digits(_root: str) -> Data:
    """Scikit-learn's 1,797 digits of 8x8 pixels: the first 1,297 to train on, the last 500 to test."""
    from sklearn import datasets

    digits = datasets.load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1).div(8).sub(1)
    y = torch.tensor(digits.target, dtype=torch.int64)
    return Data(x[:1297], y[:1297], x[1297:], y[1297:])


def load_mnist(root: str) -> Data:
    """MNIST, downloaded if ``root`` lacks it; the last 6,000 training images are left out."""
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise SystemExit("--data mnist needs torchvision: pip install '.[vision]' in the clone") from error
    try:
        train, test = (MNIST(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise SystemExit(
            f"MNIST is not in {Path(root, 'MNIST', 'raw')} and cannot be downloaded ({error}); "
            "put its four files there, or name the folder that holds MNIST/raw by --root"
        ) from error
    train_x, test_x = (
        part.data.unsqueeze(1).float().div_(255).sub_(0.1307).div_(0.3081) for part in (train, test)
    )
    return Data(train_x[:54_000], train.targets[:54_000], test_x, test.targets)


# Networks.


def convnet() -> nn.Module:
    """Three 3x3 convolutions with BatchNorm, for images of 8x8: 223,000 weights."""
    network = nn.Sequential()
    for number, (inputs, outputs) in enumerate([(1, 64), (64, 128), (128, 128)], start=1):
        network.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        network.add_module(f"norm{number}", nn.BatchNorm2d(outputs))
        network.add_module(f"relu{number}", nn.ReLU())
        network.add_module(f"pool{number}", nn.MaxPool2d(2))
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier", nn.Linear(128, 10))
    return network


def lenet300_100() -> nn.Module:
    """LeNet 300-100: 266,200 weights."""
    fc = {"fc1": nn.Linear(784, 300), "relu1": nn.ReLU(), "fc2": nn.Linear(300, 100), "relu2": nn.ReLU()}
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), **fc, fc3=nn.Linear(100, 10)))


def lenet5() -> nn.Module:
    """LeNet-5 as in Caffe: 430,500 weights."""
    conv1 = {"conv1": nn.Conv2d(1, 20, 5), "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2)}
    conv2 = {"conv2": nn.Conv2d(20, 50, 5), "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(2)}
    fc = {"flatten": nn.Flatten(), "fc1": nn.Linear(800, 500), "relu3": nn.ReLU(), "fc2": nn.Linear(500, 10)}
    return nn.Sequential(OrderedDict({**conv1, **conv2, **fc}))


# Recipes.


@dataclass(frozen=True)
class Task:
    """A data set, the networks for it, and how they are trained, dense and sparse alike.

    Attributes:
        load: reads the data from a folder.
        networks: by name; the first is the default.
        epochs: passes over the training images, each followed by a cycle where the network is sparse.
        batch_size: images a step.
        learning_rate: of SGD with Nesterov momentum 0.9.
        drops: fractions of all steps; at each, the learning rate is divided by ten.
        weight_decay: on all parameters.
    """

    load: Callable[[str], Data]
    networks: dict[str, Callable[[], nn.Module]]
    epochs: int
    batch_size: int
    learning_rate: float
    drops: tuple[float, ...]
    weight_decay: float


TASKS = {
    "digits": Task(
        load=load_digits,
        networks={"convnet": convnet},
        epochs=30,
        batch_size=32,
        learning_rate=0.2,
        drops=(0.5, 0.8),
        weight_decay=1e-2,
    ),
    "mnist": Task(
        load=load_mnist,
        networks={"lenet-300-100": lenet300_100, "lenet5-caffe": lenet5},
        epochs=100,
        batch_size=100,
        learning_rate=0.1,
        drops=(25 / 54, 50 / 54),
        weight_decay=5e-4,
    ),
}


# Training.


@dataclass
class Run:
    """All that changes while one network is trained.

    Attributes:
        model: dense or sparse.
        optimizer: SGD, or ``SparseMomentum`` around it.
        scheduler: steps once a batch.
        shuffle: draws the order of the images.
        curve: test accuracy after each epoch; nothing is chosen by it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: MultiStepLR
    shuffle: torch.Generator
    curve: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """What a fresh run needs to go on from here."""
        stateful = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}
        return {**stateful, "shuffle": self.shuffle.get_state(), "curve": list(self.curve)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        self.shuffle.set_state(state["shuffle"])
        self.curve = list(state["curve"])


def start(variant: str, task: Task, data: Data, options: argparse.Namespace) -> Run:
    """A dense or sparse run before its first step; both start from the same weights."""
    torch.manual_seed(options.seed)
    model = task.networks[options.model]()
    if variant == "sparse":
        generator = torch.Generator().manual_seed(options.seed)
        model = sparsefx.sparsify(model, density=options.density, generator=generator)
    model = model.to(options.device)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        model.parameters(), task.learning_rate, momentum=0.9, nesterov=True, weight_decay=task.weight_decay
    )
    if variant == "sparse":
        optimizer = sparsefx.SparseMomentum(optimizer, model, cycles=task.epochs, prune_rate=0.5)
    steps = task.epochs * math.ceil(len(data.train_y) / task.batch_size)
    scheduler = MultiStepLR(optimizer, [round(drop * steps) for drop in task.drops])
    return Run(model, optimizer, scheduler, torch.Generator().manual_seed(options.seed))


def train(variant: str, run: Run, task: Task, data: Data, checkpoint: Checkpoint) -> None:
    """Train a run to its last epoch; a sparse one has a cycle after each."""
    began, done = time.perf_counter(), len(run.curve)
    quiet = "CI" in os.environ or not sys.stderr.isatty()
    with tqdm(total=task.epochs, initial=done, desc=variant, unit="epoch", disable=quiet) as bar:
        for _ in range(done, task.epochs):
            train_epoch(run, data, task.batch_size)
            run.curve.append(accuracy(predict(run.model, data.test_x), data.test_y))
            if isinstance(run.optimizer, sparsefx.SparseMomentum):
                run.optimizer.cycle()
            checkpoint.save(variant, run)
            bar.set_postfix(accuracy=f"{run.curve[-1]:.2%}")
            bar.update()
    seconds = time.perf_counter() - began
    print(f"{variant}: test accuracy {run.curve[-1]:.2%}; {task.epochs - done} epochs in {seconds:.1f} s")


def train_epoch(run: Run, data: Data, batch_size: int) -> None:
    """One pass over the training images in a new order."""
    run.model.train()
    order = torch.randperm(len(data.train_y), generator=run.shuffle).to(data.train_y.device)
    for rows in order.split(batch_size):
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(data.train_x[rows]), data.train_y[rows]).backward()
        run.optimizer.step()
        run.scheduler.step()


class Checkpoint:
    """The states of all runs in one file, which is whole at any moment.

    Args:
        path: the file; None keeps nothing.
        settings: what the runs depend on; a file made with others is refused.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": settings, "runs": {}}
        if path is not None and path.exists():
            self.content = torch.load(path, weights_only=True)
        if self.content["settings"] != settings:
            raise SystemExit(
                f"--checkpoint {path} was made with {self.content['settings']}, and this run has {settings}; "
                "name another file"
            )

    def resume(self, variant: str, run: Run) -> None:
        """Bring a fresh run to where the file has it."""
        if variant in self.content["runs"]:
            run.load_state_dict(self.content["runs"][variant])

    def save(self, variant: str, run: Run) -> None:
        """Replace the file in one step: a kill leaves the old one or the new one."""
        if self.path is None:
            return
        self.content["runs"][variant] = run.state_dict()
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as file:
            torch.save(self.content, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)


# Measuring.


@dataclass
class Result:
    """What ``--json`` writes; None for what ``--only`` left out.

    Attributes:
        density: active fraction of the weights that have a mask.
        max_abs_difference: between the sparse and the exported network's outputs on the test images.
        channels_before: output channels of all convolutions and linear layers.
        latency_dense_ms: median milliseconds, by batch size.
    """

    dense_accuracy: float | None = None
    sparse_accuracy: float | None = None
    exported_accuracy: float | None = None
    density: float | None = None
    max_abs_difference: float | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    channels_before: int | None = None
    channels_after: int | None = None
    latency_dense_ms: dict[str, float] | None = None
    latency_exported_ms: dict[str, float] | None = None


def measure(runs: dict[str, Run], data: Data) -> Result:
    """Export the sparse network, check that it computes the same, and measure what there is."""
    result = Result()
    if "dense" in runs:
        result.dense_accuracy = runs["dense"].curve[-1]
    if "sparse" not in runs:
        return result
    sparse = runs["sparse"].model
    compact = sparsefx.export(sparse.eval(), example_inputs=(data.test_x[:2],))
    expected, actual = predict(sparse, data.test_x), predict(compact, data.test_x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    result.sparse_accuracy, result.exported_accuracy = runs["sparse"].curve[-1], accuracy(actual, data.test_y)
    result.density = density(sparse)
    result.max_abs_difference = (actual - expected).abs().max().item()
    result.parameters_before, result.parameters_after = map(parameters, (sparse, compact))
    result.channels_before, result.channels_after = map(channels, (sparse, compact))
    if "dense" in runs:
        times = [latency_ms(runs["dense"].model, compact, data.test_x[:size]) for size in LATENCY_BATCHES]
        result.latency_dense_ms, result.latency_exported_ms = (
            dict(zip(map(str, LATENCY_BATCHES), column, strict=True)) for column in zip(*times, strict=True)
        )
    return result


@torch.inference_mode()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, classes) in eval mode."""
    model.eval()
    return torch.cat([model(part) for part in x.split(1000)])


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Fraction of images whose label has the largest logit."""
    return (logits.argmax(1) == y).double().mean().item()


def density(model: nn.Module) -> float:
    """Active fraction of the weights that have a mask."""
    masks = [buffer for name, buffer in model.named_buffers() if name.endswith("mask")]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def parameters(model: nn.Module) -> int:
    """Number of parameters, zeros included."""
    return sum(parameter.numel() for parameter in model.parameters())


def channels(model: nn.Module) -> int:
    """Output channels of all convolutions and linear layers."""
    return sum(len(layer.weight) for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))


@torch.inference_mode()
def latency_ms(first: nn.Module, second: nn.Module, x: Tensor, repeats: int = 100) -> tuple[float, float]:
    """Median milliseconds of two models on one batch, the models taking turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for model, taken in zip((first, second), times, strict=True):
            began = time.perf_counter()
            model(x).cpu()
            taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[0]), statistics.median(times[1])


# Showing.


def print_table(result: Result) -> None:
    """Print the three networks side by side."""
    dense_ms, exported_ms = result.latency_dense_ms or {}, result.latency_exported_ms or {}
    before, after = result.parameters_before, result.parameters_after
    accuracies = (result.dense_accuracy, result.sparse_accuracy, result.exported_accuracy)
    rows: list[tuple[str, str, tuple[float | None, ...]]] = [
        ("test accuracy", ".2%", accuracies),
        ("parameters", ",", (before, before, after)),
        ("channels", ",", (result.channels_before, result.channels_before, result.channels_after)),
        *(
            (f"ms, batch of {size}", ".3f", (dense_ms.get(size), None, exported_ms.get(size)))
            for size in map(str, LATENCY_BATCHES)
        ),
    ]
    print(f"\n{'':16}{'dense':>12}{'sparse':>12}{'exported':>12}")
    for name, form, values in rows:
        cells = ("" if value is None else format(value, form) for value in values)
        print(f"{name:16}" + "".join(f"{cell:>12}" for cell in cells))
    if result.density is not None:
        print(f"\nweights active in the sparse network: {result.density:.2%}")
        print(f"largest difference of the exported network's outputs: {result.max_abs_difference:.1e}")


def plot(path: Path, runs: dict[str, Run]) -> None:
    """Draw the accuracy after each epoch and each sparse layer's density after each cycle."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.set(title="Accuracy", xlabel="epoch", ylabel="test accuracy, %")
    right.set(title="Where the sparse network keeps its weights", xlabel="cycle", ylabel="density, %")
    for variant, run in runs.items():
        left.plot(range(1, len(run.curve) + 1), [100 * value for value in run.curve], label=variant)
        if isinstance(run.optimizer, sparsefx.SparseMomentum):
            for layer, densities in density_curves(run.optimizer).items():
                right.plot(range(1, len(densities) + 1), densities, label=layer)
            right.legend()
    left.legend()
    right.set_yscale("log")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=150)


def density_curves(optimizer: sparsefx.SparseMomentum) -> dict[str, list[float]]:
    """Each layer's density in percent after each cycle."""
    layers_over_time = zip(*(record.layers for record in optimizer.history), strict=True)
    return {layers[0].name: [100 * layer.density for layer in layers] for layers in layers_over_time}


# Command line.


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; what depends on the task is filled in."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--data", choices=TASKS, default="digits")
    add("--root", default="data", help="folder that holds, or will hold, MNIST/raw (default: %(default)s)")
    add("--model", help="digits: convnet; mnist: lenet-300-100 (the default) or lenet5-caffe")
    add("--epochs", type=int, help="default: 30 for digits, 100 for mnist")
    add("--density", type=float, default=0.1, help="fraction of weights kept (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--only", choices=VARIANTS, help="train one of the two networks")
    add("--device", default="cpu", help="default: %(default)s")
    add("--threads", type=int, default=1, help="CPU threads; these networks are too small for more to pay")
    add("--checkpoint", type=Path, metavar="FILE", help="written after each epoch; resumed from if it exists")
    add("--json", type=Path, metavar="FILE", help="write the result there")
    add("--plot", type=Path, metavar="FILE.png", help="draw accuracy and densities")
    options = parser.parse_args(arguments)
    task = TASKS[options.data]
    options.model = network_name(options.model or next(iter(task.networks)))
    options.epochs = task.epochs if options.epochs is None else options.epochs
    if options.model not in task.networks:
        parser.error(f"--model {options.model}: --data {options.data} has {', '.join(task.networks)}")
    if options.epochs < 1:
        parser.error(f"--epochs {options.epochs}: must be at least 1")
    if not 0 < options.density <= 1:
        parser.error(f"--density {options.density}: must be in (0, 1]")
    for name in ("checkpoint", "json", "plot"):  # found out now, not after hours of training
        path = getattr(options, name)
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            parser.error(f"--{name} {path}: must be a file in a folder that exists")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train, export, measure, show."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    task = replace(TASKS[options.data], epochs=options.epochs)
    data = task.load(options.root).to(options.device)
    checkpoint = Checkpoint(options.checkpoint, {name: getattr(options, name) for name in SETTINGS})
    variants = VARIANTS if options.only is None else (options.only,)
    runs = {variant: start(variant, task, data, options) for variant in variants}
    for variant, run in runs.items():
        checkpoint.resume(variant, run)
        train(variant, run, task, data, checkpoint)
    result = measure(runs, data)
    print_table(result)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(options.plot, runs)


if __name__ == "__main__":
    main()
