"""How the time and memory of export grow with the graph.

    python benchmarks/export_scaling.py
    python benchmarks/export_scaling.py --models vit_b_16 vit_l_16 --repeats 3

Each export runs in a process of its own: float32, batch 1, 224x224 (or 32 tokens), 40% of every layer's
rows emptied. ``llama6`` and so on are transformers' Llama of so many layers. Peak memory is that of the
process during export less that before it; the model itself, in float32, is shown beside it. CPU seconds
are those of the process: on a machine that is busy besides they say more than the clock.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import networks
import torch
import torchvision
import workers
from torch import Tensor, fx, nn

import sparsefx

RESULTS = Path("runs/export_scaling.jsonl")
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MODELS = (*RESNETS, "vit_b_16", "vit_l_16", "llama6", "llama12", "llama24")


def main() -> None:
    """Measure, then print one row a model."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--models", nargs="+", default=MODELS, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    cells = ["nodes", "seconds", "CPU s", "CPU ms/node", "peak MiB", "model MiB", "exported"]
    print(f"{'model':12}" + "".join(f"{cell:>13}" for cell in cells))
    for name in options.models:
        known = [r for r in workers.read(options.results) if r["model"] == name]
        for _ in range(len(known), options.repeats):
            why = workers.run(measure, (name, options.results), timeout=600, gigabytes=16)
            if why:
                print(name, why)
        records = [r for r in workers.read(options.results) if r["model"] == name]
        if records:
            print_row(min(records, key=lambda r: float(r["cpu"])))


def print_row(record: workers.Record) -> None:
    """One line of the table: of several runs the one that took the least CPU time."""
    nodes, cpu = record["nodes"], record["cpu"]
    cells = [f"{nodes}", f"{record['seconds']:.1f}", f"{cpu:.1f}", f"{1000 * cpu / nodes:.0f}"]
    cells += [f"{record[key]:.0f}" for key in ("peak", "before", "after")]
    print(f"{record['model']:12}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def measure(name: str, results: Path) -> None:
    """Export one model and append the record."""
    torch.manual_seed(0)
    model, example = build(name)
    networks.randomise(model)
    networks.empty(model, "rows")
    with torch.no_grad():
        model(example)
    before, cpu, clock = peak_memory(), time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compact = sparsefx.export(model, (example,))
    record = {
        "model": name,
        "seconds": time.perf_counter() - clock,
        "cpu": time.process_time() - cpu,
        "peak": peak_memory() - before,
        "nodes": graph_nodes(compact),
        "before": megabytes(model),
        "after": megabytes(compact),
    }
    workers.append(results, [record])


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode and its input."""
    if name.startswith("llama"):
        return Llama(int(name.removeprefix("llama"))).eval(), torch.randint(0, 1000, (1, 32))
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model.eval(), torch.randn(1, 3, 224, 224)


class Llama(nn.Module):
    """A Llama of the given depth, 256 wide, that returns its logits."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config: Any = LlamaConfig(
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=1000,
            use_cache=False,
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def graph_nodes(model: nn.Module) -> int:
    """Nodes of all graphs inside a model."""
    return sum(len(module.graph.nodes) for module in model.modules() if isinstance(module, fx.GraphModule))


def peak_memory() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def megabytes(model: nn.Module) -> float:
    """MiB of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


if __name__ == "__main__":
    main()
