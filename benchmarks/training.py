"""How fast training by sparse kernels is: whole steps, next to the best dense step that torch has.

    python benchmarks/training.py steps --models vgg16-d mlp --densities 0.05 0.1 --batches 32 128
    python benchmarks/training.py memory --models vgg16-d mlp
    python benchmarks/training.py cycles --models vgg16-d
    python benchmarks/training.py inference --models alexnet-s vgg16-d wrn-28-2 wrn-16-10
    python benchmarks/training.py table

A step is zero_grad, forward, cross-entropy, backward and SGD with momentum and weight decay. The dense
contenders are eager, channels-last and ``torch.compile`` in float32, and bfloat16 autocast beside them.
All take turns in one process with one thread, and the ratio is the best float32 median to the sparse one.
Weights are random at the density, all but the first convolution's. ``memory`` is the peak of a process of
its own above what the model's load takes; ``cycles`` times the cycle of sparse momentum and the steps of
its window; ``inference`` times the export with sparse kernels beside the dense contenders. Results go to
benchmarks/records/training.jsonl, ``table`` writes docs/training_speed.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import workers
from pages import write_section
from torch import Tensor, nn
from training_table import sections

import sparsefx
from sparsefx.experiments.networks import network
from sparsefx.experiments.networks.wide_resnet import WideResNet
from sparsefx.kernels.codegen.vectors import LANES

RESULTS = Path(__file__).parent / "records" / "training.jsonl"
TIMEOUT, GIGABYTES = 3600.0, 24.0
FLOAT32 = ("eager", "channels-last", "compile")

Step = Callable[[], object]


class Attention(nn.Module):
    """A block of a transformer: attention and MLP, each after LayerNorm, around which the value goes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, width) to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def vit() -> nn.Module:
    """Six blocks, 384 wide, on tokens (N, 65, 384)."""
    return nn.Sequential(*(Attention(384, 6) for _ in range(6)), Mean(), nn.Linear(384, 10))


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to (N, width)."""
        return x.mean(1)


def mlp() -> nn.Module:
    """3072-4096-4096-10."""
    first = nn.Sequential(nn.Linear(3072, 4096), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10))


def of_torchvision(name: str) -> nn.Module:
    """A network for 10 classes."""
    import torchvision

    model: nn.Module = getattr(torchvision.models, name)(num_classes=10)
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg16-d": (network("vgg16-d").build, (3, 32, 32)),
    "wrn-16-4": (lambda: WideResNet(16, 4, 0.0), (3, 32, 32)),
    "wrn-28-2": (lambda: WideResNet(28, 2, 0.0), (3, 32, 32)),
    "wrn-16-10": (lambda: WideResNet(16, 10, 0.0), (3, 32, 32)),
    "resnet18": (lambda: of_torchvision("resnet18"), (3, 64, 64)),
    "resnet50": (lambda: of_torchvision("resnet50"), (3, 64, 64)),
    "alexnet-s": (network("alexnet-s").build, (3, 32, 32)),
    "mlp": (mlp, (3072,)),
    "lenet-300-100": (network("lenet-300-100").build, (1, 28, 28)),
    "lenet5-caffe": (network("lenet5-caffe").build, (1, 28, 28)),
    "vit": (vit, (65, 384)),
}
"""Each with the shape of a sample."""


def main() -> None:
    """Measure, or write the tables."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("command", choices=[*COMMANDS, "table"])
    parser.add_argument("--models", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.05, 0.1, 0.2])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--without", nargs="+", default=[], help="contenders to leave out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    if options.command == "table":
        for section, text in sections(list(workers.read(options.results))):
            write_section("training_speed.md", section, text)
        return
    for model, batch in itertools.product(options.models, options.batches):
        record = {"kind": options.command, "model": model, "batch": batch, "lanes": LANES}
        ended = workers.run(measure, (record, options), timeout=TIMEOUT, gigabytes=GIGABYTES)
        print(model, batch, ended or "done", flush=True)


def measure(record: workers.Record, options: argparse.Namespace) -> None:
    """Measure one model at one batch size, in a process of its own."""
    torch.set_num_threads(options.threads)
    records = [
        record | {"threads": options.threads} | found for found in COMMANDS[record["kind"]](record, options)
    ]
    for one in records:
        print(*one.values(), flush=True)
    workers.append(options.results, records)


# -- steps ---------------------------------------------------------------------------------------------


def of_steps(record: workers.Record, options: argparse.Namespace) -> Iterator[workers.Record]:
    """All contenders and densities in turns."""
    x, labels = batch_of(record)
    build = NETWORKS[record["model"]][0]
    torch.manual_seed(0)
    dense = build()
    steps = {
        name: make(copy.deepcopy(dense), x, labels)
        for name, make in CONTENDERS.items()
        if name not in options.without
    }
    for density in options.densities:
        steps[f"{density:g}"] = step_of(accelerated(dense, x, density), x, labels)
    milliseconds = take_turns(steps, options.turns)
    best = min(milliseconds[name] for name in FLOAT32 if name in milliseconds)
    for density in options.densities:
        sparse = milliseconds[f"{density:g}"]
        contenders = {name: milliseconds.get(name) for name in CONTENDERS}
        yield {"density": density, "sparse": sparse, "ratio": best / sparse, **contenders}


def of_inference(record: workers.Record, options: argparse.Namespace) -> Iterator[workers.Record]:
    """The exports of all densities, and the dense contenders in evaluation, in turns."""
    x, _ = batch_of(record)
    torch.manual_seed(0)
    dense = NETWORKS[record["model"]][0]().eval()
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    models: dict[str, Any] = {"eager": dense, "channels-last": last}
    models["compile"] = torch.compile(dense, dynamic=False)
    kept = [name for name in models if name not in options.without]
    steps: dict[str, Step] = {name: partial(evaluate, models[name], x) for name in kept}
    for density in options.densities:
        sparse = sparsefx.sparsify(dense, density, dense=first_convolution(dense), seed=0).eval()
        steps[f"{density:g}"] = partial(evaluate, sparsefx.export(sparse, (x,), kernels="sparse"), x)
    milliseconds = take_turns(steps, options.turns)
    best = min(milliseconds[name] for name in kept)
    for density in options.densities:
        sparse_time = milliseconds[f"{density:g}"]
        contenders = {name: milliseconds.get(name) for name in models}
        yield {"density": density, "sparse": sparse_time, "ratio": best / sparse_time, **contenders}


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor) -> None:
    """A forward pass."""
    model(x)


def first_convolution(dense: nn.Module) -> list[str]:
    """Its name, if there is one."""
    return [name for name, layer in dense.named_modules() if isinstance(layer, nn.Conv2d)][:1]


def batch_of(record: workers.Record) -> tuple[Tensor, Tensor]:
    """Random samples (N, ...) and labels (N,)."""
    shape = NETWORKS[record["model"]][1]
    return torch.randn(record["batch"], *shape), torch.randint(0, 10, (record["batch"],))


def accelerated(dense: nn.Module, x: Tensor, density: float) -> nn.Module:
    """A sparse copy, its first convolution dense, that trains by sparse kernels."""
    model = sparsefx.sparsify(dense, density, dense=first_convolution(dense), seed=0)
    return sparsefx.accelerate(model, (x,)).train()


def step_of(model: nn.Module, x: Tensor, labels: Tensor, bfloat16: bool = False) -> Step:
    """A training step."""
    optimizer = sgd(model)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def sgd(model: nn.Module) -> torch.optim.SGD:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def eager(model: nn.Module, x: Tensor, labels: Tensor) -> Step:
    """Torch as it is."""
    return step_of(model, x, labels)


def channels_last(model: nn.Module, x: Tensor, labels: Tensor) -> Step:
    """In the layout that oneDNN likes."""
    if x.dim() != 4:
        return step_of(model, x, labels)
    model.to(memory_format=torch.channels_last)
    return step_of(model, x.contiguous(memory_format=torch.channels_last), labels)


def compiled(model: nn.Module, x: Tensor, labels: Tensor) -> Step:
    """``torch.compile``."""
    return step_of(torch.compile(model, dynamic=False), x, labels)  # type: ignore[arg-type]


def autocast(model: nn.Module, x: Tensor, labels: Tensor) -> Step:
    """Autocast to bfloat16."""
    return step_of(model, x, labels, bfloat16=True)


CONTENDERS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "eager": eager,
    "channels-last": channels_last,
    "compile": compiled,
    "bfloat16": autocast,
}


def take_turns(steps: dict[str, Step], turns: int) -> dict[str, float]:
    """The median milliseconds of each; the first two turns are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    repeats = dict.fromkeys(steps, 1)
    for turn in range(turns + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                step()
            seconds = (time.perf_counter() - start) / repeats[name]
            if turn == 1:
                repeats[name] = max(1, min(50, round(0.1 / seconds)))
            if turn > 1:
                times[name].append(1e3 * seconds)
    return {name: statistics.median(values) for name, values in times.items()}


# -- memory --------------------------------------------------------------------------------------------


def of_memory(record: workers.Record, options: argparse.Namespace) -> Iterator[workers.Record]:
    """The peak above the loaded dense model, of a dense step and of each density's."""
    for density in (None, *options.densities):
        receiver = options.results.with_suffix(".memory")
        receiver.unlink(missing_ok=True)
        ended = workers.run(measure_memory, (record, density, receiver), timeout=TIMEOUT, gigabytes=GIGABYTES)
        found = list(workers.read(receiver))
        receiver.unlink(missing_ok=True)
        if ended or not found:
            raise RuntimeError(ended or "nothing was measured")
        yield {"density": density, **found[0]}


def measure_memory(record: workers.Record, density: float | None, path: Path) -> None:
    """Three steps of one model; megabytes at the peak above what there was before the model."""
    torch.set_num_threads(1)
    x, labels = batch_of(record)
    small = accelerated(nn.Sequential(nn.Linear(4, 4)), torch.ones(4, 4), 0.5)  # imports all there is
    F.cross_entropy(small(torch.ones(4, 4)), torch.zeros(4, dtype=torch.long)).backward()
    dense = NETWORKS[record["model"]][0]()
    loaded = resident("VmRSS")
    if density is not None:
        model = accelerated(dense, x, density)
        del dense
    else:
        model = dense
    step = step_of(model, x, labels)
    clear_peak()
    for _ in range(3):
        step()
    parameters = [*model.parameters()]
    kept = 4 * 3 * sum(parameter.numel() for parameter in parameters) / 2**20
    workers.append(path, [{"peak": resident("VmHWM") - loaded, "kept": kept}])


def resident(field: str) -> float:
    """Megabytes of this process: ``VmRSS`` now, ``VmHWM`` at the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def clear_peak() -> None:
    """Let the peak begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


# -- cycles --------------------------------------------------------------------------------------------


def of_cycles(record: workers.Record, options: argparse.Namespace) -> Iterator[workers.Record]:
    """A cycle with the packing after it, a step of the window and one of the others, against a dense step."""
    x, labels = batch_of(record)
    torch.manual_seed(0)
    dense = NETWORKS[record["model"]][0]()
    dense_step = step_of(copy.deepcopy(dense), x, labels)
    for density in options.densities:
        model = accelerated(dense, x, density)
        optimizer = sparsefx.SparseMomentum(sgd(model), model, cycles=1000, every=10**6, window=1)
        step = partial(train, model, optimizer, x, labels)
        times: dict[str, list[float]] = {name: [] for name in ("dense", "window", "packed", "cycle")}
        for turn in range(options.turns + 1):
            hold(model, False)
            step()  # packs
            found = {"dense": seconds(dense_step), "packed": seconds(step)}
            hold(model, True)
            step()  # unpacks
            found["window"] = seconds(step)
            hold(model, False)
            found["cycle"] = seconds(optimizer.cycle) + seconds(step) - found["packed"]
            for name, value in found.items():
                times[name] += [1e3 * value] if turn else []
        yield {"density": density, **{name: statistics.median(values) for name, values in times.items()}}


def hold(model: nn.Module, held: bool) -> None:
    """Keep weights dense, as in the window before a cycle."""
    from sparsefx.masking.packing import packings

    for packing in packings(model):
        packing.hold("benchmark", held)


def train(model: nn.Module, optimizer: Any, x: Tensor, labels: Tensor) -> None:
    """A step."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()


def seconds(function: Callable[[], object]) -> float:
    """That a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


COMMANDS: dict[str, Callable[[workers.Record, argparse.Namespace], Iterator[workers.Record]]] = {
    "steps": of_steps,
    "memory": of_memory,
    "cycles": of_cycles,
    "inference": of_inference,
}

if __name__ == "__main__":
    main()
