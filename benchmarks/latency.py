"""Latency of torchvision's classifiers before and after export, beside their operations.

    python benchmarks/latency.py run
    python benchmarks/latency.py run --models resnet50 --batches 1 --turns 21
    python benchmarks/latency.py table

float32, evaluation, without gradients. Half of the rows of every Linear and Conv layer are emptied at
random, their biases stay, and every norm has statistics of its own. The two networks take turns;
a ratio is the median of the turns' ratios, below 1 where the exported network is faster. The
operations' ratio is torch's own count (``FlopCounterMode``). A profile of one run each tells how much of the
time convolutions, products and attention take (the layers), and how much the rest does: norms, activations,
additions, copies, which move data and count for no operations. Results are appended to a file of JSON lines;
what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path

import networks
import torch
import torchvision
import workers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sparsefx

RESULTS = Path("runs/latency.jsonl")
MODELS = [
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "vgg11_bn", "alexnet",
    "squeezenet1_1", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0",
    "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf",
    "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
]  # fmt: skip
SIZES = {"inception_v3": 299}
LAYERS = ("conv", "mm", "linear", "attention")  # parts of the names of their ATen operations


def main() -> None:
    """Measure, or print the table."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--models", nargs="+", default=MODELS, help="default: 23 of all families")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="default: %(default)s")
    parser.add_argument("--size", type=int, help="image size (default: 224, or what the model takes)")
    parser.add_argument("--turns", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--rows", type=float, default=0.5, help="fraction emptied (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    if options.command == "run":
        for name in options.models:
            measure_model(name, options)
    print_table(list(workers.read(options.results)))


def measure_model(name: str, options: argparse.Namespace) -> None:
    """Measure one model at every batch size that has no record yet."""
    known = {(r["model"], r["batch"]) for r in workers.read(options.results)}
    for batch in [batch for batch in options.batches if (name, batch) not in known]:
        size = options.size or SIZES.get(name, 224)
        x = torch.randn(batch, 3, size, size)
        torch.manual_seed(0)
        dense = torchvision.models.get_model(name, weights=None).eval()
        networks.randomise(dense)
        empty_rows(dense, options.rows)
        networks.calibrate(dense, (x[:1].repeat(4, 1, 1, 1) + torch.randn(4, 3, size, size),))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compact = sparsefx.export(dense, (x,))
        before, after, ratio = latencies(dense, compact, x, options.turns)
        shares = share_of_layers(dense, x), share_of_layers(compact, x)
        record = {
            "model": name,
            "batch": batch,
            "size": size,
            "dense": before,
            "compact": after,
            "ratio": ratio,
            "layers": ratio * shares[1] / shares[0],
            "rest": 1 - shares[1],
            "flops": flops(compact, x[:1]) / flops(dense, x[:1]),
            "parameters": networks.sizes(compact)[0] / networks.sizes(dense)[0],
        }
        workers.append(options.results, [record])
        print(*(f"{v:.3f}" if isinstance(v, float) else v for v in record.values()), flush=True)


@torch.no_grad()
def empty_rows(model: nn.Module, fraction: float) -> None:
    """Empty rows of every weight; the first stays, and what stays is scaled up to the former norm."""
    for weight, dim in networks.weights(model):
        norm, rows = weight.norm(), weight.transpose(0, dim)
        rows[1:][torch.rand(len(rows) - 1) < fraction] = 0
        weight *= norm / weight.norm()


@torch.no_grad()
def latencies(one: nn.Module, other: nn.Module, x: Tensor, turns: int) -> tuple[float, float, float]:
    """Median milliseconds of two networks taking turns, and the median of the second over the first."""
    times: list[tuple[float, float]] = [
        (milliseconds(one, x), milliseconds(other, x)) for _ in range(turns + 1)
    ]
    first, second = zip(*times[1:], strict=True)
    ratios = [b / a for a, b in times[1:]]
    return statistics.median(first), statistics.median(second), statistics.median(ratios)


def milliseconds(model: nn.Module, x: Tensor) -> float:
    """The time of one run."""
    began = time.perf_counter()
    model(x)
    return 1000 * (time.perf_counter() - began)


@torch.no_grad()
def share_of_layers(model: nn.Module, x: Tensor) -> float:
    """The part of a run's time that convolutions, matrix products and attention take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x)
    events = profile.key_averages()
    layers = sum(e.self_cpu_time_total for e in events if any(kind in e.key for kind in LAYERS))
    return float(layers / sum(event.self_cpu_time_total for event in events))


@torch.no_grad()
def flops(model: nn.Module, x: Tensor) -> int:
    """Operations of one run."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())


def print_table(records: list[workers.Record]) -> None:
    """A Markdown table, a row a model and batch."""
    header = ["model", "batch", "image", "dense, ms", "exported, ms", "time ratio", "FLOP ratio", "short by"]
    header += ["layers' time ratio", "rest of the time", "parameters"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for r in records:
        cells = [r["model"], r["batch"], r["size"], f"{r['dense']:.1f}", f"{r['compact']:.1f}"]
        cells += [f"{r['ratio']:.2f}", f"{r['flops']:.2f}", f"{r['ratio'] - r['flops']:+.2f}"]
        cells += [f"{r['layers']:.2f}", f"{100 * r['rest']:.0f}%", f"{r['parameters']:.2f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    slower = [f"{r['model']} at {r['batch']}" for r in records if r["ratio"] > 1]
    print(f"\n{len(records)} measured; slower after export: {', '.join(slower) or 'none'}")


if __name__ == "__main__":
    main()
