"""How long sparsify and export take, and how much faster the exported network is.

    python benchmarks/export_time.py
    python benchmarks/export_time.py --model resnet50 --size 224 --rows 0.4

Rows (output channels) of every layer are emptied at random and BatchNorm is given statistics away
from 0 and 1, so that export has constants to fold. Latencies are medians, the two networks taking turns;
the dense one runs with BatchNorm folded too, so that the ratio is due to the removed channels alone.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import sparsefx


def main() -> None:
    """Measure and print one row a model."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model", action="append", help="torchvision name, repeatable; default: resnet50")
    parser.add_argument("--size", type=int, default=224, help="image size (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rows", type=float, default=0.4, help="fraction emptied (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; seconds, milliseconds\n")
    print_cells("", ["sparsify", "export", "parameters", "exported", "dense ms", "export ms", "ratio"])
    for name in options.model or ["resnet50"]:
        print_row(name, options)


def print_row(name: str, options: argparse.Namespace) -> None:
    """Measure one model and print its line."""
    x = torch.randn(options.batch, 3, options.size, options.size)
    sparsify_times, export_times = [], []
    for _ in range(options.repeats):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        randomize_norms(model)
        folded = sparsefx.export(model, (x,))
        began = time.perf_counter()
        sparse = sparsefx.sparsify(model, density=1.0)
        sparsify_times.append(time.perf_counter() - began)
        empty_rows(sparse, options.rows)
        began = time.perf_counter()
        compact = sparsefx.export(sparse, (x,))
        export_times.append(time.perf_counter() - began)
    dense_ms, export_ms = latencies(folded, compact, x)
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, compact))
    seconds = [f"{statistics.median(times):.2f}" for times in (sparsify_times, export_times)]
    speed = [f"{dense_ms:.1f}", f"{export_ms:.1f}", f"{dense_ms / export_ms:.2f}"]
    print_cells(name, [*seconds, f"{before:,}", f"{after:,}", *speed])


def print_cells(name: str, cells: list[str]) -> None:
    """Print one line of the table."""
    print(f"{name:18}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


@torch.no_grad()
def randomize_norms(model: nn.Module) -> None:
    """Give BatchNorm statistics as training would."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]


@torch.no_grad()
def empty_rows(model: nn.Module, fraction: float) -> None:
    """Empty a fraction of each layer's output channels, and keep the masks in step."""
    for masked in sparsefx.masked_weights(model):
        mask = masked.mask.clone()
        mask[torch.rand(len(mask)) < fraction] = False
        masked.set_mask(mask)


@torch.inference_mode()
def latencies(one: nn.Module, other: nn.Module, x: Tensor, repeats: int = 20) -> tuple[float, float]:
    """Median milliseconds of two networks, taking turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for model, taken in zip((one, other), times, strict=True):
            began = time.perf_counter()
            model(x)
            taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
