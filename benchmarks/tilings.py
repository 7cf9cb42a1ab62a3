"""How a sparse convolution is best divided: times of tilings, and the model of them fitted.

    python benchmarks/tilings.py measure --models vgg16-d resnet50 --densities 0.05 0.1 --batches 1 16
    python benchmarks/tilings.py judge
    python benchmarks/tilings.py fit

``measure`` times every sensible tiling of every convolution of the models, on one thread, and appends one
line of JSON a layer to the results. Weights are taken from several copies in turn, as in a network other
layers' weights are read in between. ``judge`` says how much longer than the best tiling takes the one that
the model likes best; ``fit`` looks for constants with which that is least, and prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sparse_kernels
import torch
import workers
from torch import nn

import sparsefx
from sparsefx.kernels.codegen.convolution import Tile
from sparsefx.kernels.codegen.dispatch_loop import DRIVE
from sparsefx.kernels.codegen.vectors import LANES, VECTOR_BYTES
from sparsefx.kernels.ir.program import Convolution, RegionProgram, read_program
from sparsefx.kernels.planner import plan, tiling
from sparsefx.kernels.planner.steps import Convolve
from sparsefx.kernels.runtime import native
from sparsefx.kernels.runtime.calls import Calls
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.kernels.runtime.threads import run_in_team

RESULTS = Path("benchmarks/records/tilings.jsonl")
WEIGHT_BYTES = 16 * 2**20  # of all copies together: as if the rest of a network had been run in between
LEAST = 0.004  # seconds that a tiling is run


def main() -> None:
    """Measure, judge or fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["measure", "judge", "fit"])
    parser.add_argument("--models", nargs="+", default=["vgg16-d", "wrn-16-10", "resnet50"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.05, 0.1])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, LANES])
    parser.add_argument("--rounds", type=int, default=400, help="of fitting; default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    {"measure": measure, "judge": judge, "fit": fit}[options.command](options)


def measure(options: argparse.Namespace) -> None:
    """Time the tilings of all layers that are not in the results."""
    known = {(r["layer"], r["density"], r["batch"], r["lanes"]) for r in workers.read(options.results)}
    for model, density, batch in itertools.product(options.models, options.densities, options.batches):
        for name, (layer, shape) in sparse_kernels.layers_of(model).items():
            if isinstance(layer, nn.Linear) or (name.split(",")[0], density, batch, LANES) in known:
                continue
            torch.manual_seed(0)
            sparse_kernels.thin_out(nn.Sequential(layer), density, first=True)
            x = torch.randn(batch, *shape[1:])
            region = sparsefx.export(nn.Sequential(layer), (x,), kernels="sparse")
            (sparse,) = (module for module in region.modules() if isinstance(module, SparseRegion))
            record = {"layer": name.split(",")[0], "density": density, "batch": batch, "lanes": LANES}
            record |= times(sparse, x)
            workers.append(options.results, [record])
            print(*list(record.values())[:4], len(record["tilings"]), flush=True)


def times(region: SparseRegion, x: torch.Tensor) -> dict[str, Any]:
    """What the model is told of a layer, and microseconds of every tiling."""
    program = read_program(region.program)
    (item,) = program.instructions
    assert isinstance(item, Convolution)
    sizes = (1,) * (3 - program.dims) + tuple(x.shape[2:])
    spec = plan.contiguous(program.dims, item.in_channels, (sizes[0], sizes[1], sizes[2]))
    first = _step(program, spec, x.shape[0], None)
    size, pitch = first.target.layout.tile, first.source.layout.pitch
    copies = 1 + WEIGHT_BYTES // sum(t.nbytes for t in region.tensors())
    weights = [[t.clone() for t in region.tensors()] for _ in range(min(copies, 64))]
    tilings = []
    for candidate in tiling.candidates(item, size):
        micro = _time(_step(program, spec, x.shape[0], candidate), weights)
        tile = candidate.tile
        tilings.append([tile.height, tile.width, tile.unroll, candidate.together, round(micro, 2)])
    return {"item": dataclasses.asdict(item), "size": size, "pitch": pitch, "tilings": tilings}


def _step(
    program: RegionProgram, spec: plan.TensorSpec, images: int, chosen: tiling.Tiling | None
) -> Convolve:
    """The convolution of a plan with that tiling, its values where the plan puts them."""
    choose = mock.patch.object(plan, "choose_tiling", return_value=chosen)
    with contextlib.nullcontext() if chosen is None else choose:
        made = plan.Plan(program, [spec], [spec], images, 1)
    (step,) = (step for step in made.steps if isinstance(step, Convolve))
    return step


def _time(step: Convolve, weights: list[list[torch.Tensor]]) -> float:
    """Microseconds of a run."""
    values = step.source, step.target
    end = max(v.address.offset + v.layout.bytes for v in values)
    memory = torch.rand((max(end, step.room.offset + step.scratch) + VECTOR_BYTES) // 4 + 1)
    start = memory.data_ptr() + -memory.data_ptr() % VECTOR_BYTES
    calls = Calls(step.calls(), 1)
    # The two tensors outside are not touched: the convolution alone is run.
    listed = [calls.at(start, np.array([0, 0, *(t.data_ptr() for t in copy)])) for copy in weights]
    drive = native.compiled(DRIVE)
    best, began, turns = math.inf, time.perf_counter(), itertools.cycle(listed)
    count = 0
    while count < 5 or time.perf_counter() - began < LEAST:
        cells = next(turns)
        before = time.perf_counter()
        run_in_team(drive, cells.ctypes.data, 1)
        best = min(best, time.perf_counter() - before)
        count += 1
    return 1e6 * best


Layer = tuple[Convolution, Any, Any, list[tuple[tiling.Tiling, float]]]


def layers(path: Path) -> list[Layer]:
    """What was measured with as many lanes as here."""
    measured = []
    for record in workers.read(path):
        if record["lanes"] == LANES:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in record["item"].items()
            }
            item = Convolution(**fields)
            tilings = [
                (tiling.Tiling(Tile(height, width, unroll, item.stride[2]), together), micro)
                for height, width, unroll, together, micro in record["tilings"]
            ]
            measured.append((item, tuple(record["size"]), tuple(record["pitch"]), tilings))
    return measured


def excess(listed: list[Layer]) -> list[float]:
    """How many times as long as the best tiling the chosen one takes, for each layer."""
    result = []
    for item, size, pitch, tilings in listed:
        cost: Callable[[Any], float] = lambda pair: tiling.tiling_cost(pair[0], item, size, pitch)  # noqa: B023, E731
        result.append(min(tilings, key=cost)[1] / min(micro for _, micro in tilings))
    return result


def scale_errors(listed: list[Layer]) -> float:
    """How far the model's cycles are from the times, up to one factor: the mean of absolute logarithms."""
    logs = [
        math.log(tiling.tiling_cost(candidate, item, size, pitch) / micro)
        for item, size, pitch, tilings in listed
        for candidate, micro in tilings
    ]
    middle = statistics.median(logs)
    return statistics.mean(abs(log - middle) for log in logs)


def judge(options: argparse.Namespace) -> None:
    """Print the model's errors."""
    listed = layers(options.results)
    excesses = excess(listed)
    print(f"{len(listed)} layers, {sum(len(item[3]) for item in listed)} tilings")
    print(f"chosen over best: mean {statistics.mean(excesses):.3f}, worst {max(excesses):.3f}")
    print(f"cycles: mean error {scale_errors(listed):.3f}")


def fit(options: argparse.Namespace) -> None:
    """Change a cost at a time, by chance, and keep what is better."""
    listed = layers(options.results)
    random.seed(0)
    best = objective(listed)
    for _ in range(options.rounds):
        before = tiling._COSTS
        tiling._COSTS = changed(before)
        now = objective(listed)
        if now < best:
            best = now
            print(round(best, 4), tiling._COSTS, flush=True)
        else:
            tiling._COSTS = before
    judge(options)


def changed(costs: tiling.Costs) -> tiling.Costs:
    """One of them larger or smaller; the first load is the measure of all."""
    names = [field.name for field in dataclasses.fields(costs) if field.name != "loads"]
    name, factor = random.choice([*names, "load", "load", "bytes"]), math.exp(random.gauss(0, 0.3))
    if name in names:
        return dataclasses.replace(costs, **{name: getattr(costs, name) * factor})
    loads = [list(pair) for pair in costs.loads]
    which = random.randrange(1, len(loads)) if name == "load" else random.randrange(len(loads) - 1)
    loads[which][name == "load"] *= factor
    return dataclasses.replace(costs, loads=tuple((most, cycles) for most, cycles in loads))


def objective(listed: list[Layer]) -> float:
    """What is lost by choosing; and a little of the error of cycles, which schedules are made by."""
    return statistics.mean(map(math.log, excess(listed))) + 0.02 * scale_errors(listed)


if __name__ == "__main__":
    main()
