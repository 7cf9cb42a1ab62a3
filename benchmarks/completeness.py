"""Whether export removes all that torch-pruning removes from public models, and still computes the same.

    python benchmarks/completeness.py run --zoo torchvision --models 'resnet*'
    python benchmarks/completeness.py table

torch-pruning picks half of the channels of every group at random and removes them; output layers are
excepted, and groups with a norm over channels, whose result depends on how many zeros there are. The same
elements of the parameters are set to 0 in a copy of the model and export is left to find them. Its result
must have at most the parameters of torch-pruning's and compute what the zeroed copy computes, in float64.
A model runs in a process of its own; results are appended to
records/completeness.jsonl, and what is there already is skipped. ``table`` writes a section of
docs/coverage.md. Needs torch-pruning, and timm for its models.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import completeness_table
import networks
import torch
import torch_pruning
import workers
import zoo
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import sparsefx

RESULTS = Path(__file__).parent / "records/completeness.jsonl"
RATIO = 0.5
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Norms over channels: these count the zeros that would go."""
OTHER_TASKS = (
    "*rcnn*",
    "*fcos*",
    "*retinanet*",
    "*ssd*",
    "*raft*",
    "*3d*",
    "*mc3*",
    "*r2plus1d*",
    "*mvit_v*",
)
"""torchvision's detection, flow and video."""


def main() -> None:
    """Run, or write the table."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--zoo", choices=["torchvision", "timm"], help="default: both")
    parser.add_argument("--models", nargs="+", metavar="GLOB", help="names, or zoo/names; default: all")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a model (default: %(default)s)")
    parser.add_argument("--memory", type=float, default=12, help="GiB a model (default: %(default)s)")
    parser.add_argument("--largest", type=float, default=150, help="million parameters, default %(default)s")
    options = parser.parse_args()
    if options.command == "table":
        completeness_table.write(list(workers.read(options.results)))
    else:
        _run(options)


def _run(options: argparse.Namespace) -> None:
    done = set() if options.again else {record["model"] for record in workers.read(options.results)}
    left_out = {case.key for case in zoo.find("torchvision", list(OTHER_TASKS))}
    for name in [options.zoo] if options.zoo else ["torchvision", "timm"]:
        for case in zoo.find(name, options.models):
            if case.key in done | left_out:
                continue
            known = len(list(workers.read(options.results)))
            arguments = (case.key, options.largest, options.results)
            reason = workers.run(measure, arguments, timeout=options.timeout, gigabytes=options.memory)
            if len(list(workers.read(options.results))) == known:
                workers.append(options.results, [{"model": case.key, "status": "failed", "message": reason}])
            print(list(workers.read(options.results))[-1], flush=True)


def measure(key: str, largest: float, results: Path) -> None:
    """Prune one model both ways and append the record."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    case = zoo.get(key)
    model = case.build().double().eval()
    size = networks.sizes(model)
    record: workers.Record
    if size[0] > largest * 1e6:
        record = {"status": "too large", "message": f"{size[0] / 1e6:.0f} million parameters"}
    else:
        networks.randomise(model)
        networks.calibrate(model, case.inputs(4, *case.size))
        record = {"parameters": size[0], "weights": size[1], **_compare(model, case)}
    workers.append(results, [{"model": key, **record}])


def _compare(model: nn.Module, case: zoo.Case) -> workers.Record:
    pruned = copy.deepcopy(model)
    try:
        _prune(pruned, case.inputs(1, *case.size))  # a larger batch may be taken for a channel dimension
    except Exception as error:  # torch-pruning cannot prune every model
        return {"status": "not pruned", "message": f"{type(error).__name__}: {error}"[:160]}
    inputs = case.inputs(2, *case.size)
    emptied = _without(model, pruned)
    expected = networks.outputs(emptied, inputs)
    compact = sparsefx.export(emptied, inputs)
    theirs, ours = networks.sizes(pruned), networks.sizes(compact)
    report: Any = compact.report
    return {
        "status": "complete" if ours[0] <= theirs[0] else "larger",
        "pruned_parameters": theirs[0],
        "pruned_weights": theirs[1],
        "export_parameters": ours[0],
        "export_weights": ours[1],
        "pruned_difference": _difference(pruned, inputs, expected),
        "difference": networks.difference(networks.outputs(compact, inputs), expected),
        "message": " | ".join(f"{step.name}: {step.detail}" for step in report.passes if step.detail)[:160],
    }


def _difference(pruned: nn.Module, inputs: tuple[Any, ...], expected: list[Tensor]) -> float | None:
    """Of what torch-pruning leaves; None if that does not run."""
    try:
        return networks.difference(networks.outputs(pruned, inputs), expected)
    except Exception:  # a size written in the model's code, say
        return None


def _prune(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Let torch-pruning prune a model in place; each element of its tensors is then its former position."""
    classes = {tensor.shape[1] for tensor in networks.outputs(model, inputs) if tensor.dim() > 1}
    warnings.simplefilter("ignore")  # it says which choices it makes
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs,
        torch_pruning.importance.RandomImportance(),
        pruning_ratio=RATIO,
        ignored_layers=[module for module in model.modules() if _width(module) in classes],
        in_channel_groups={},
        out_channel_groups={},
        num_heads=_heads(model),
    )
    with torch.no_grad():
        for _, tensor in _tensors(model):
            tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))
    for group in pruner.step(interactive=True):
        if not any(isinstance(dependency.target.module, NORMS) for dependency, _ in group):
            group.prune()


def _width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, _ConvNd) else None


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """The number of heads of torch's own attention, and of layers that compute queries, keys and values."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        layer = module if isinstance(module, nn.MultiheadAttention) else getattr(module, "qkv", None)
        number: Any = getattr(module, "num_heads", None)
        if isinstance(layer, (nn.MultiheadAttention, nn.Linear)) and isinstance(number, int):
            heads[layer] = number
    return heads


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers that can hold positions, by name."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            yield name, tensor


@torch.no_grad()
def _without(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """A copy of the model with 0 for each parameter that was pruned; gives the pruned one its values."""
    emptied = copy.deepcopy(model)
    parameters, values = dict(emptied.named_parameters()), dict(_tensors(model))
    for name, positions in _tensors(pruned):
        kept = positions.flatten().long()
        if name in parameters:
            removed = torch.ones(parameters[name].numel(), dtype=torch.bool)
            removed[kept] = False
            parameters[name].view(-1)[removed] = 0
        positions.copy_(values[name].flatten()[kept].view_as(positions))
    return emptied


if __name__ == "__main__":
    main()
