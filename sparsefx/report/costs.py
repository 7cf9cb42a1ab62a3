"""What each Linear and Conv layer costs: multiply-adds counted, and seconds measured, on example inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsefx._common.inputs import positional
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.masking.layers import MASKABLE
from sparsefx.passes.running.untouched import untouched

Arrival = tuple[str, nn.Module, Tensor, Tensor]
Call = tuple[str, nn.Module, tuple[Any, ...], Any]


def maskable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Linear and Conv layers of a model by name; a layer that occurs twice has its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MASKABLE)}


def layer_flops(model: nn.Module, example_inputs: Sequence[Any]) -> dict[str, int]:
    """Dense floating point operations of each layer for one sample; a multiply-add counts as 2.

    Args:
        model: the model; it is run once, in evaluation mode, without gradients.
        example_inputs: its positional arguments; dimension 0 of each layer's input is the batch.
    """
    flops = dict.fromkeys(maskable_layers(model), 0)
    for name, layer, source, result in arrivals(model, example_inputs):
        if source.is_nested:  # torch's fast path through a transformer layer: no shape to count by
            continue
        weight = cast(Tensor, layer.weight)
        channels = max(1, weight.shape[0])
        positions = (source if isinstance(layer, _ConvTransposeNd) else result).numel() // channels
        batched = source.dim() >= weight.dim()
        flops[name] += 2 * weight.numel() * positions // (max(1, source.shape[0]) if batched else 1)
    for name, region, sources, _ in calls(model, example_inputs, regions(model)):
        shapes = [tuple(source.shape) for source in sources]
        for inner, count in cast(SparseRegion, region).flops(shapes):
            path = layer_path(name, inner)
            flops[path] = flops.get(path, 0) + count
    return flops


def regions(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model that sparse kernels compute, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseRegion)}


def layer_path(region: str, layer: str) -> str:
    """The name in the model of a layer in a region, which has it as its graph does."""
    path = region.rpartition(".")[0]
    return f"{path}.{layer}" if path else layer


def layer_seconds(model: nn.Module, example_inputs: Sequence[Any], repeats: int) -> dict[str, float]:
    """Median run time of each layer's forward for the whole batch, in seconds.

    The layers are timed in turn, ``repeats`` times over, so that a slow moment hits them all.
    """
    calls = list(arrivals(model, example_inputs))
    samples: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for _ in range(repeats + 1):
            for (_, layer, source, _), times in zip(calls, samples, strict=True):
                _finish(source)
                start = time.perf_counter()
                layer(source)
                _finish(source)
                times.append(time.perf_counter() - start)
    seconds = dict.fromkeys(maskable_layers(model), 0.0)
    for (name, *_), times in zip(calls, samples, strict=True):
        seconds[name] += statistics.median(times[1:])  # the first round warms up
    return seconds


def _finish(source: Tensor) -> None:
    """Wait for the device, which otherwise works on after a call has returned."""
    if source.is_cuda:
        torch.cuda.synchronize(source.device)


def arrivals(model: nn.Module, example_inputs: Sequence[Any]) -> Iterator[Arrival]:
    """Run a model once; yields (layer name, layer, its input, its output) for each call of a layer."""
    for name, layer, sources, result in calls(model, example_inputs, maskable_layers(model)):
        yield name, layer, sources[0], result


def calls(
    model: nn.Module, example_inputs: Sequence[Any], modules: Mapping[str, nn.Module]
) -> Iterator[Call]:
    """Run a model once; yields (name, module, its arguments, its result) for each call of one of the modules.

    It runs in evaluation mode on copies of the inputs; buffers, attributes and modes stay as they were.
    """
    seen: list[Call] = []
    copies = untouched(model, positional(example_inputs))
    with (
        _listening(modules, seen),
        _evaluating(model),
        torch.no_grad(),
        copies as inputs,
    ):
        model(*inputs)
    yield from seen


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _listening(modules: Mapping[str, nn.Module], seen: list[Call]) -> Iterator[None]:
    def listen(name: str, layer: nn.Module) -> Any:
        def note(layer: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            seen.append((name, layer, (*args, *kwargs.values()), result))

        return layer.register_forward_hook(note, with_kwargs=True)

    handles = [listen(name, layer) for name, layer in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
