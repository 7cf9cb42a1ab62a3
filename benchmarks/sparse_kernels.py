"""Sparse CPU kernels against dense ones: networks, layers, starts, ``kernels="auto"``.

    python benchmarks/sparse_kernels.py networks --models vgg16-d --densities 0.05 --batches 1 16 64
    python benchmarks/sparse_kernels.py layers --models resnet50 vit_b_16 gpt2 --densities 0.1
    python benchmarks/sparse_kernels.py auto --densities 0.05 0.1 0.3 1
    python benchmarks/sparse_kernels.py start --models vgg16-d resnet50
    python benchmarks/sparse_kernels.py trained --models runs/*sparse-momentum*
    python benchmarks/sparse_kernels.py table

float32, evaluation, without gradients; random weights, all layers but the first at the density, or those of
a finished run of ``sparsefx train``; BatchNorm folded in every contender. Contenders take turns; each turn
runs one at least 0.05 s. Times are medians, and dense is the fastest of torch's ways (``contenders.TORCH``)
by its median; the ratio is the median of the turns' ratios of that one to the sparse kernels. ONNX Runtime
and OpenVINO follow with turns of their own, as their threads disturb torch's. Every output is compared with
eager's. Results are appended to a file of JSON lines; what is there already, of a processor with as
wide vectors, is not measured again: to repeat, name a file of your own with ``--results``, for which
``table`` prints what it writes to docs/kernels.md otherwise. Each measurement has its own process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contenders
import sparse_kernels_table
import torch
import torchvision
import workers
from pages import write_section
from torch import Tensor, nn

import sparsefx
from sparsefx.experiments.networks import NETWORKS
from sparsefx.kernels.codegen.vectors import LANES
from sparsefx.kernels.runtime.region import SparseRegion

RESULTS = Path("benchmarks/records/sparse_kernels.jsonl")
LEAST = 0.05  # seconds of a turn
TIMEOUT = 3600
GIGABYTES = 64


def main() -> None:
    """Measure, or print the tables."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("command", choices=[*COMMANDS, "table"])
    parser.add_argument(
        "--models", nargs="+", help="of sparsefx's, torchvision's, or gpt2; for trained, folders of runs"
    )
    parser.add_argument(
        "--densities", nargs="+", type=float, default=[0.05, 0.1], help="default: %(default)s"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64], help="default: %(default)s")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--turns", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--without", nargs="+", default=[], help="contenders to leave out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    if options.command == "table":
        for section, text in sparse_kernels_table.sections(list(workers.read(options.results))):
            if options.results == RESULTS:
                write_section("kernels.md", section, text)
            else:
                print(f"{section}\n\n{text}\n")
        return
    known = {key(record) for record in workers.read(options.results)}
    for record in COMMANDS[options.command](options):
        record |= {"lanes": LANES}
        if key(record) in known:
            print(*record.values(), f"is in {options.results} already; --results names a file of your own")
        else:
            ended = workers.run(measure, (record, options), timeout=TIMEOUT, gigabytes=GIGABYTES)
            print(*record.values(), ended, flush=True)


KEY = ("kind", "model", "layer", "density", "batch", "threads", "lanes")


def key(record: workers.Record) -> tuple[Any, ...]:
    """What a measurement is told apart by."""
    return tuple(record.get(name) for name in KEY)


def of_networks(options: argparse.Namespace) -> Iterator[workers.Record]:
    """A measurement for every network, density, batch and number of threads."""
    models = options.models or ["vgg16-d", "wrn-16-10", "resnet50"]
    for model, density, batch, threads in itertools.product(
        models, options.densities, options.batches, options.threads
    ):
        yield {"kind": "network", "model": model, "density": density, "batch": batch, "threads": threads}


def of_layers(options: argparse.Namespace) -> Iterator[workers.Record]:
    """One for every kind of layer of a network, on its own."""
    models = options.models or ["resnet50", "vit_b_16", "gpt2"]
    for model, density, batch, threads in itertools.product(
        models, options.densities, options.batches, options.threads
    ):
        for layer in layers_of(model):
            record = {"kind": "layer", "model": model, "layer": layer, "density": density}
            yield record | {"batch": batch, "threads": threads}


def of_auto(options: argparse.Namespace) -> Iterator[workers.Record]:
    """One for every classification model of torchvision and density."""
    models = options.models or [
        name
        for name in torchvision.models.list_models(torchvision.models)
        if not name.startswith(("vit_h", "vit_l", "regnet_y_128gf"))
    ]
    for model, density in itertools.product(models, options.densities):
        yield {"kind": "auto", "model": model, "density": density, "batch": 1, "threads": 1}


def of_starts(options: argparse.Namespace) -> Iterator[workers.Record]:
    """One for every network."""
    for model, density in itertools.product(options.models or ["vgg16-d", "resnet50"], options.densities):
        yield {"kind": "start", "model": model, "density": density, "batch": 1, "threads": 1}


def of_trained(options: argparse.Namespace) -> Iterator[workers.Record]:
    """A measurement for every run, batch and number of threads."""
    for folder, batch, threads in itertools.product(options.models, options.batches, options.threads):
        name, data, method, density = Path(folder).name.split("_")[:4]
        record = {"kind": "trained", "model": f"{name}, {data}, {method}", "density": float(density)}
        yield record | {"batch": batch, "threads": threads, "folder": folder}


def measure(record: workers.Record, options: argparse.Namespace) -> None:
    """Measure one, and append it to the results."""
    torch.set_num_threads(record["threads"])
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    COMMAND_OF[record["kind"]](record, options)
    print({name: record[name] for name in ("ratio", "best", "ms", "cold", "warm", "other") if name in record})
    workers.append(options.results, [record | {"torch": torch.__version__}])


def measure_network(record: workers.Record, options: argparse.Namespace) -> None:
    """A whole network by all contenders."""
    model, x = network(record["model"], record["batch"])
    thin_out(model, record["density"])
    compare(record, model, x, contenders.TORCH | contenders.OTHERS, options)


def measure_trained(record: workers.Record, options: argparse.Namespace) -> None:
    """A trained network by all contenders, and what the paper would have estimated."""
    folder = Path(record.pop("folder"))
    model, x = network(folder.name.split("_")[0], record["batch"])
    state = torch.load(folder / "model.pt", weights_only=True)
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith(".mask")})
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        estimate = sparsefx.estimate_speedup(model, (x,))
        record |= {"sparse_estimate": estimate.sparse_by_time, "dense_estimate": estimate.dense_by_time}
    compare(record, model, x, contenders.TORCH | contenders.OTHERS, options)


def measure_layer(record: workers.Record, options: argparse.Namespace) -> None:
    """One layer by torch's contenders, compilation left out."""
    layer, shape = layers_of(record["model"])[record["layer"]]
    x = torch.randn(record["batch"] * shape[0], *shape[1:])
    thin_out(nn.Sequential(nn.Identity(), layer), record["density"], first=True)
    makers = {name: make for name, make in contenders.TORCH.items() if name != "compile"}
    compare(record, nn.Sequential(layer), x, makers, options)


def measure_auto(record: workers.Record, options: argparse.Namespace) -> None:
    """``kernels="auto"`` against ``"dense"``."""
    model, x = network(record["model"], record["batch"])
    thin_out(model, record["density"])
    dense = sparsefx.export(model, (x,))
    auto = sparsefx.export(model, (x,), kernels="auto")
    times = take_turns({"eager": dense, "sparse": auto}, x, options.turns)
    taken = sum(isinstance(module, SparseRegion) for module in auto.modules())
    record |= summary(times, ["eager"]) | {"regions": taken}


def measure_start(record: workers.Record, options: argparse.Namespace) -> None:
    """The first run in a new process, with no compiled kernels on disk and with them; then another size."""
    model, x = network(record["model"], record["batch"])
    thin_out(model, record["density"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        sparse = sparsefx.export(model, (x,), kernels="sparse")
        torch.save(sparse, path)
        environment = {**os.environ, "SPARSEFX_CACHE": f"{folder}/cache"}
        runs = [
            subprocess.run(
                [sys.executable, __file__, "first", str(path), *map(str, x.shape)],
                env=environment, check=True, capture_output=True, text=True,
            ).stdout
            for _ in range(2)
        ]  # fmt: skip
    (cold, _), (warm, other) = (map(float, run.split()) for run in runs)
    record |= {"cold": cold, "warm": warm, "other": other}


def first_run(path: str, *shape: str) -> None:
    """Print the seconds that the first run takes beyond those of the second; the same for three images."""
    import sparsefx.kernels.runtime.operators  # noqa: F401

    model, x = torch.load(path, weights_only=False), torch.randn(*map(int, shape))
    for size in (x, torch.cat([x] * 3)):
        seconds = [seconds_of(model, size) for _ in range(2)]
        print(seconds[0] - seconds[1])


def compare(
    record: workers.Record,
    model: nn.Module,
    x: Tensor,
    makers: dict[str, contenders.Maker],
    options: argparse.Namespace,
) -> None:
    """Time all contenders and note it in the record."""
    dense = sparsefx.export(model, (x,))
    sparse = sparsefx.export(model, (x,), kernels="sparse")
    makers = {"sparse": lambda *_: sparse} | makers
    times: dict[str, list[float]] = {}
    for later in (False, True):  # the threads of the others would disturb torch's
        functions: dict[str, contenders.Contender] = {}
        for name, make in makers.items():
            if (name in contenders.OTHERS) == later and name not in options.without:
                try:
                    functions[name] = made(make, dense, x, record["threads"])
                except (ImportError, RuntimeError) as error:
                    print(record["model"], name, str(error)[:200], flush=True)
        times |= take_turns(functions, x, options.turns)
    record |= summary(times, list(contenders.TORCH))


@torch.no_grad()
def made(make: contenders.Maker, dense: nn.Module, x: Tensor, threads: int) -> contenders.Contender:
    """A contender, if it computes what eager torch does."""
    function = make(dense, x, threads)
    expected = dense(x)
    difference = (torch.as_tensor(function(x)) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-4, f"it differs by {difference}"
    return function


@torch.no_grad()
def take_turns(functions: dict[str, contenders.Contender], x: Tensor, turns: int) -> dict[str, list[float]]:
    """Milliseconds of every function in every turn."""
    runs = {}
    for name, function in functions.items():
        seconds_of(function, x)
        runs[name] = 1 + int(LEAST / seconds_of(function, x))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            time.sleep(0.01)  # threads of the one before may still be waiting actively
            times[name].append(1000 * min(seconds_of(function, x) for _ in range(runs[name])))
    return times


@torch.no_grad()
def seconds_of(function: Callable[[Tensor], Any], x: Tensor) -> float:
    """The time of one run."""
    began = time.perf_counter()
    function(x)
    return time.perf_counter() - began


def summary(times: dict[str, list[float]], dense: list[str]) -> workers.Record:
    """Medians, and ratios to the sparse kernels."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min((name for name in dense if name in medians), key=medians.__getitem__)
    ratios = [one / other for one, other in zip(times[best], times["sparse"], strict=True)]
    return {"best": best, "ratio": statistics.median(ratios), "ms": medians}


def network(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode and an input."""
    if name in NETWORKS:
        return NETWORKS[name].build().eval(), torch.randn(batch, *NETWORKS[name].input_shape)
    size = 299 if name == "inception_v3" else 224
    model = torchvision.models.get_model(name, weights=None).eval()
    return model, torch.randn(batch, 3, size, size)


@torch.no_grad()
def thin_out(model: nn.Module, density: float, first: bool = False) -> None:
    """Set random weights of every layer but the first to 0; scale the rest up, so that signals last."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    for layer in layers:
        if not layer.weight.any():  # heads that start from 0, without which nothing would be left
            nn.init.normal_(layer.weight, std=0.01)
    for layer in layers[0 if first else 1 :]:
        kept = torch.randperm(layer.weight.numel())[: round(density * layer.weight.numel())]
        mask = torch.zeros(layer.weight.numel()).index_fill_(0, kept, density**-0.5)
        layer.weight *= mask.view_as(layer.weight)


def layers_of(model: str) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Layers of different shapes by name, with how often they occur, and an input's shape for one image."""
    if model == "gpt2":
        shapes = {"attention in": (768, 2304), "attention out": (768, 768), "mlp in": (768, 3072)}
        shapes["mlp out"] = (3072, 768)
        return {f"{n} {i}->{o}": (nn.Linear(i, o), (128, i)) for n, (i, o) in shapes.items()}
    whole, x = network(model, 1)
    found: dict[tuple[Any, ...], tuple[nn.Module, tuple[int, ...], int]] = {}

    def see(layer: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        shape = tuple(inputs[0].reshape(-1, inputs[0].shape[-1]).shape if linear(layer) else inputs[0].shape)
        what = (tuple(layer.weight.shape), getattr(layer, "stride", None), shape)
        found[what] = (layer, shape, found[what][2] + 1 if what in found else 1)

    layers = [module for module in whole.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(see) for layer in layers]
    with torch.no_grad():
        whole(x)
    for handle in handles:  # a layer with hooks stays what it is
        handle.remove()
    return {
        f"{layer_name(layer, shape)}, {count} of them": (layer, shape)
        for layer, shape, count in found.values()
    }


def layer_name(layer: Any, shape: tuple[int, ...]) -> str:
    """Channels, window, stride and the size of the input."""
    window = "x".join(map(str, layer.weight.shape[2:])) or "linear"
    stride = "" if linear(layer) or layer.stride[0] == 1 else f" stride {layer.stride[0]}"
    size = "x".join(map(str, shape[2:] or shape[:1]))
    return f"{layer.weight.shape[1]}->{layer.weight.shape[0]} {window}{stride} on {size}"


def linear(layer: nn.Module) -> bool:
    """Whether it works on rows."""
    return isinstance(layer, nn.Linear)


COMMANDS = {
    "networks": of_networks,
    "layers": of_layers,
    "auto": of_auto,
    "start": of_starts,
    "trained": of_trained,
}
COMMAND_OF = {
    "network": measure_network,
    "layer": measure_layer,
    "auto": measure_auto,
    "start": measure_start,
    "trained": measure_trained,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["first"]:
        first_run(*sys.argv[2:])
    else:
        main()
