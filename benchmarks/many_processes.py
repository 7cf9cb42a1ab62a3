"""What sparse training costs on many processes: time and bytes of steps and cycles, next to dense ones.

    python benchmarks/many_processes.py replicas   # DistributedDataParallel, dense and sparse in turn
    python benchmarks/many_processes.py shards     # FSDP2, the same
    python benchmarks/many_processes.py simulate   # a cycle of 7 and 70 billion weights on 64 ranks

``replicas`` and ``shards`` start gloo processes on this machine. Bytes are those that the network interfaces
count, all processes together, so they hold whatever is sent. ``simulate`` runs one rank's share of a decoder
layer's cycle, the other ranks holding no active weight, and counts what it would send.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import step_overhead
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sparsefx
from sparsefx.cycle import DECAY, GROW, PRUNE, REDISTRIBUTE, LayerState, PruneAndRegrow, UpdateContext
from sparsefx.cycle.positions.block import Block

RANKS = 64
DECODERS = {
    "7 billion (4096, 11008, 32 layers)": (32, [(4096, 4096)] * 4 + [(11008, 4096)] * 3),
    "70 billion (8192, 28672, 80 layers)": (
        80,
        [(8192, 8192)] * 2 + [(1024, 8192)] * 2 + [(28672, 8192)] * 3,
    ),
}


def main() -> None:
    """Measure what was asked for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("what", choices=["replicas", "shards", "simulate"])
    parser.add_argument("--world", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--model", choices=step_overhead.CASES, default="vgg16", help="default: %(default)s")
    parser.add_argument("--batch", type=int, help="samples a process; default: by model")
    parser.add_argument("--repeats", type=int, default=40, help="timed steps of each (default: %(default)s)")
    options = parser.parse_args()
    if options.what == "simulate":
        for name, (depth, shapes) in DECODERS.items():
            simulate(name, depth, shapes)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (folder, options), nprocs=options.world)


def _worker(rank: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.world))
    store = (Path(folder) / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.world)
    turns, cycles, optimizer = _measure(options)
    if rank == 0:
        _print(options, turns, cycles, optimizer)
    dist.destroy_process_group()


def _measure(options: argparse.Namespace) -> tuple[list[Any], list[Any], sparsefx.SparseMomentum]:
    """(time and bytes of a dense and of a sparse step) for each turn; those of some cycles."""
    case = step_overhead.CASES[options.model]
    divide = _replicate if options.what == "replicas" else _shard
    torch.manual_seed(0)
    network = case.network()
    x = torch.randn(options.batch or case.batch[0], *case.batch[1:])
    y = torch.randint(10, (len(x),))
    sparse = sparsefx.sparsify(network, density=0.1)
    dense_trainer = _trainer(divide(network), x, y)
    sparse_trainer = _trainer(divide(sparse), x, y)
    optimizer = sparsefx.SparseMomentum(sparse_trainer.optimizer, sparse_trainer.model, cycles=1000)
    sparse_trainer = step_overhead.Trainer(sparse_trainer.model, optimizer, x, y)
    turns = [
        (_counted(dense_trainer.step), _counted(sparse_trainer.step)) for _ in range(options.repeats + 5)
    ]
    cycles = []
    for _ in range(5):
        sparse_trainer.step()
        cycles.append(_counted(lambda: _milliseconds(optimizer)))
    return turns[5:], cycles, optimizer


def _trainer(model: nn.Module, x: Tensor, y: Tensor) -> step_overhead.Trainer:
    return step_overhead.Trainer(model, step_overhead.sgd(model), x, y)


def _replicate(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def _shard(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model, mesh=mesh)
    return model


def _milliseconds(optimizer: sparsefx.SparseMomentum) -> float:
    began = time.perf_counter()
    optimizer.cycle()
    return 1000 * (time.perf_counter() - began)


def _counted(run: Callable[[], float]) -> tuple[float, int]:
    """What ``run`` returns, and the bytes that all processes sent meanwhile."""
    dist.barrier()
    before = _bytes_sent()
    dist.barrier()  # nobody begins before all have read
    result = run()
    dist.barrier()
    after = _bytes_sent()
    dist.barrier()
    return result, after - before


def _bytes_sent() -> int:
    """Bytes that the network interfaces have sent since the machine started."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


def _print(
    options: argparse.Namespace, turns: list[Any], cycles: list[Any], optimizer: sparsefx.SparseMomentum
) -> None:
    middle = statistics.median
    layers = optimizer.history[-1].layers
    print(
        f"{options.what}, {options.world} processes, {options.model}: "
        f"{sum(layer.numel for layer in layers):,} masked weights in {len(layers)} layers\n"
        f"step: dense {middle(dense[0] for dense, _ in turns):.1f} ms, "
        f"sparse {middle(sparse[0] for _, sparse in turns):.1f} ms, "
        f"dense / sparse {middle(dense[0] / sparse[0] for dense, sparse in turns):.4f}\n"
        f"bytes of a step: dense {middle(dense[1] for dense, _ in turns):,.0f}, "
        f"sparse {middle(sparse[1] for _, sparse in turns):,.0f}\n"
        f"cycle: {middle(time for time, _ in cycles):.1f} ms, {middle(sent for _, sent in cycles):,.0f} bytes"
    )


@dataclass(frozen=True, eq=False)
class OneOfMany(Block):
    """A rank's block of a layer of which the other ranks contribute 0; counts what it would send."""

    def sum(self, part: Tensor) -> Tensor:
        """What this rank contributes."""
        SENT.append(part.nbytes)
        return part


SENT: list[int] = []


def simulate(name: str, depth: int, shapes: list[tuple[int, int]]) -> None:
    """Print what a cycle of one decoder layer costs a rank, and of all of them."""
    generator = torch.Generator().manual_seed(0)
    layers = [_state(f"{index}", shape, generator) for index, shape in enumerate(shapes)]
    swap = PruneAndRegrow(PRUNE["magnitude"], REDISTRIBUTE["momentum"], GROW["momentum"])
    SENT.clear()
    began = time.perf_counter()
    swap(layers, UpdateContext(DECAY["cosine"](0.5, 0.3)))
    seconds = time.perf_counter() - began
    weights = sum(layer.numel for layer in layers)
    print(
        f"{name}: {weights * depth / 1e9:.1f} billion masked weights, {RANKS} ranks\n"
        f"  computing, one CPU core: {seconds * depth:.1f} s, {seconds * RANKS / weights * 1e9:.0f} ns each\n"
        f"  sums: {len(SENT) * depth:,} of {statistics.mean(SENT):,.0f} bytes on average, "
        f"{sum(SENT) * depth / 1e6:.1f} MB; at 0.1 ms each {len(SENT) * depth * 1e-4:.1f} s\n"
        f"  gathering weights and momenta instead: {weights * depth * 8 / 1e9:.0f} GB on every rank"
    )


def _state(name: str, shape: tuple[int, int], generator: torch.Generator) -> LayerState:
    rows = shape[0] // RANKS
    size = torch.Size((rows, shape[1]))
    mask = torch.rand(size, generator=generator) < 0.1
    block = OneOfMany(torch.Size(shape), size, (0, 0), (), torch.device("cpu"))
    weight, momentum = (torch.randn(size, generator=generator) for _ in range(2))
    return LayerState(name, weight * mask, mask, momentum, block=block)


if __name__ == "__main__":
    main()
