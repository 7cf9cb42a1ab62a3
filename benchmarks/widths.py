"""How long layers take at every width: whether it pays to round widths up (``align``, ``round_groups``).

    python benchmarks/widths.py run
    python benchmarks/widths.py run --cases 'linear*' --turns 31
    python benchmarks/widths.py table

Two layers with a ReLU between them, whose inner width is what export changes; or one convolution in groups,
by the width of a group. float32, without gradients, one example size and batch a case. All widths of a case
take turns in random order; a figure is the median of the turns. ``table`` prints, for each case and each
multiple, the mean over all other widths of the time at the next multiple over that at the width itself: below
1, rounding up pays. It also draws the curves (docs/widths.png; needs matplotlib).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import torch
import workers
from torch import Tensor, nn

RESULTS = Path("runs/widths.jsonl")
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "widths.png"
MULTIPLES = (4, 8, 16)


@dataclass(frozen=True)
class Case:
    """A network by its width.

    Attributes:
        name: what it is called in the tables.
        build: makes the network of a width and an input for it.
        widths: the widths to measure.
    """

    name: str
    build: Callable[[int], tuple[nn.Module, Tensor]]
    widths: range


def cases() -> list[Case]:
    """Linear layers, convolutions and grouped convolutions, on one sample and on several."""
    found = [Case(f"linear, {rows} rows", partial(_linear, rows), range(33, 129)) for rows in (1, 197)]
    for batch in (1, 16):
        for kernel in (1, 3):
            build = partial(_convolutions, batch, kernel)
            found.append(Case(f"conv {kernel}x{kernel}, batch {batch}", build, range(33, 97)))
        found.append(Case(f"conv 3x3 in 8 groups, batch {batch}", partial(_grouped, batch), range(1, 33)))
    return found


def _linear(rows: int, width: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 256)), torch.randn(rows, 256)


def _convolutions(batch: int, kernel: int, width: int) -> tuple[nn.Module, Tensor]:
    one, other = (nn.Conv2d(*sizes, kernel, padding=kernel // 2) for sizes in ((64, width), (width, 64)))
    return nn.Sequential(one, nn.ReLU(), other), torch.randn(batch, 64, 14, 14)


def _grouped(batch: int, width: int) -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(8 * width, 8 * width, 3, padding=1, groups=8), torch.randn(batch, 8 * width, 14, 14)


def main() -> None:
    """Measure, or print the table and draw the curves."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="default: all")
    parser.add_argument("--turns", type=int, default=21, help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    if options.command == "run":
        for case in cases():
            if any(fnmatch(case.name, pattern) for pattern in options.cases):
                workers.append(options.results, [measure(case, options.turns)])
                print(case.name, flush=True)
        return
    records = {record["case"]: record for record in workers.read(options.results)}
    print_table(list(records.values()))
    draw(list(records.values()))


@torch.no_grad()
def measure(case: Case, turns: int) -> workers.Record:
    """The milliseconds of each width."""
    runs = {width: case.build(width) for width in case.widths}
    seconds: dict[int, list[float]] = {width: [] for width in runs}
    order = list(runs)
    for _ in range(turns + 1):  # the first turn warms up
        random.shuffle(order)
        for width in order:
            seconds[width].append(_time(*runs[width]))
    medians = {width: 1e3 * statistics.median(times[1:]) for width, times in seconds.items()}
    about = {"turns": turns, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"case": case.name, "ms": medians} | about


def _time(network: nn.Module, x: Tensor) -> float:
    network(x)
    start = time.perf_counter()
    network(x)
    return time.perf_counter() - start


def print_table(records: list[workers.Record]) -> None:
    """One line a case: time at the next multiple over time at the width, mean and smallest."""
    print("| case | " + " | ".join(f"up to a multiple of {k}" for k in MULTIPLES) + " |")
    print("|---|" + "---|" * len(MULTIPLES))
    for record in records:
        ms = {int(width): time for width, time in record["ms"].items()}
        cells = [_gain(ms, multiple) for multiple in MULTIPLES]
        print(f"| {record['case']} | " + " | ".join(cells) + " |")


def _gain(ms: dict[int, float], multiple: int) -> str:
    rounded = {w: -(-w // multiple) * multiple for w in ms}
    ratios = {w: ms[up] / ms[w] for w, up in rounded.items() if up != w and up in ms}
    best = min(ratios, key=lambda w: ratios[w])
    return f"{statistics.mean(ratios.values()):.2f} (best {ratios[best]:.2f}: {best} to {rounded[best]})"


def draw(records: list[workers.Record]) -> None:
    """The curves, a panel a case."""
    import matplotlib.pyplot as plt

    columns = 4
    rows = -(-len(records) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis, record in zip(axes.flat, records, strict=False):
        widths, ms = zip(*((int(w), t) for w, t in record["ms"].items()), strict=True)
        axis.plot(widths, ms, color="0.6", linewidth=1)
        for k, colour in ((8, "tab:blue"), (16, "tab:red")):
            chosen = [(w, t) for w, t in zip(widths, ms, strict=True) if w % k == 0]
            axis.plot(*zip(*chosen, strict=True), "o", color=colour, markersize=4, label=f"multiples of {k}")
        axis.set(title=record["case"], ylim=(0, None))
    for axis in axes.flat[len(records) :]:
        axis.axis("off")
    axes[0][0].legend(frameon=False)
    figure.supxlabel("width")
    figure.supylabel("ms")
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=80)


if __name__ == "__main__":
    main()
