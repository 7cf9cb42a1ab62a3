"""``accelerate``: train a sparse model by kernels that compute from its nonzero weights alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from torch import fx, nn

from sparsefx._common.copying import copy_model
from sparsefx._common.inputs import call_of
from sparsefx.errors import ArgumentError
from sparsefx.kernels.frontend.training_backend import TrainingKernels
from sparsefx.kernels.runtime import native
from sparsefx.kernels.training.memory_pool import POOL, return_free_memory
from sparsefx.kernels.training.region import TrainingRegion
from sparsefx.masking.masks import bare, check_unsharded, masked_weights
from sparsefx.masking.packing import attach_packing, detach_packings, unpack_all
from sparsefx.masking.replicas import leave_packed_out
from sparsefx.passes.analysis.analyses import Analyses
from sparsefx.passes.capture.undisturbed import same_modes, undisturbed
from sparsefx.passes.graph.graph_module import TwoModeGraphModule
from sparsefx.passes.graph.layers import CONTRACTIONS
from sparsefx.passes.graph.plain_graphs import PlainGraphs, keep_plain, plain_graphs_of
from sparsefx.passes.manager.pipeline import RegionReport
from sparsefx.passes.regions.regions import Regions, free_name
from sparsefx.passes.rewrites.functionalize import Functionalize
from sparsefx.passes.running.compare import run
from sparsefx.passes.running.untouched import same_buffers

TrainingKernelsChoice = Literal["auto", "sparse"]
"""What computes the layers of an accelerated model."""


def accelerate(
    model: nn.Module, example_inputs: Sequence[Any], *, kernels: TrainingKernelsChoice = "auto"
) -> nn.Module:
    """Return a copy of a sparse model that trains and evaluates by sparse kernels, on the CPU in float32.

    Connected layers become regions: Linear, convolutions, BatchNorm, ReLU, pooling and residual sums, whose
    forward and backward pass take time by the number of nonzero weights. What is outside of the regions
    stays torch's. In a region a masked weight is *packed*: its parameter is the vector ``[active]`` of its
    active values, so gradients and optimizer state have that size too. ``state_dict()`` and everything
    else of sparsefx see dense weights as ever.

    Make the optimizer after this. With :class:`sparsefx.SparseMomentum` and the like, gradients of inactive
    weights are computed in the steps before a cycle alone (its argument ``window``).

    Args:
        model: a model that :func:`sparsefx.sparsify` returned as a graph; it is not changed.
        example_inputs: positional arguments of ``model``, e.g. ``(x,)``, of a batch as in training.
        kernels: ``"sparse"`` takes every region; ``"auto"`` those whose training step is faster on this
            machine at the example's size.

    Returns:
        The accelerated model, in the mode of ``model``. ``sparsefx.report(model)`` says what each region
        has, and why other layers are in none. ``sparsefx.export`` takes it as it takes any other model.

    Raises:
        ArgumentError: the model has no masks, is no graph, is accelerated already, is not on the CPU, does
            not run on the example inputs, or cannot be copied; ``kernels`` is none of its values.
        MissingPackageError: ``kernels="sparse"`` without llvmlite. With ``"auto"`` it warns instead, and
            there is no region.

    Example:
        >>> import torch, sparsefx
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
        >>> x = torch.randn(32, 64)
        >>> model = sparsefx.accelerate(sparsefx.sparsify(net, density=0.1), (x,), kernels="sparse")
        >>> _ = model(x).sum().backward()
        >>> model.get_parameter("0.weight").grad.dim()
        1
    """
    inputs = call_of(example_inputs)
    _check(model, inputs, kernels)
    result = copy_model(model)
    assert isinstance(result, TwoModeGraphModule)
    if kernels == "sparse":
        native.require()
    elif not native.available():
        warnings.warn(f"kernels='auto' takes torch's: {native.MISSING}", stacklevel=2)
        return result
    return _accelerate(result, inputs, measured=kernels == "auto")


def _check(model: nn.Module, inputs: tuple[Any, ...], kernels: str) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if kernels not in get_args(TrainingKernelsChoice):
        values = ", ".join(map(repr, get_args(TrainingKernelsChoice)))
        raise ArgumentError(f"kernels={kernels!r} is none of {values}")
    if bare(model) is not model:
        raise ArgumentError(
            f"model is wrapped by {type(model).__name__}; accelerate the model first, and wrap the result"
        )
    if not masked_weights(model):
        raise ArgumentError("model has no masked weights; pass it through sparsefx.sparsify first")
    if plain_graphs_of(model) is not None:
        raise ArgumentError("model is accelerated already")
    check_unsharded(model, "accelerate")
    if not isinstance(model, TwoModeGraphModule):
        raise ArgumentError(
            f"model is a {type(model).__name__} and no graph; sparsefx.sparsify(..., trace=True) says which "
            "part of it could not be traced, and why"
        )
    devices = {str(parameter.device) for parameter in model.parameters()} - {"cpu"}
    if devices:
        raise ArgumentError(
            f"model is on {', '.join(sorted(devices))}; sparse kernels run on the CPU: model.cpu()"
        )
    with undisturbed():
        try:
            run(model, inputs)
        except Exception as error:  # the user's own model may raise anything
            raise ArgumentError(f"example_inputs do not run through the model: {error}") from error


def _accelerate(model: TwoModeGraphModule, inputs: tuple[Any, ...], measured: bool) -> nn.Module:
    before = model.mode_graph(True), model.mode_graph(False)
    backend = TrainingKernels(measured)
    for masked in masked_weights(model):
        attach_packing(masked.holders)
    graphs: dict[bool, fx.Graph] = {}
    reports: tuple[RegionReport, ...] = ()
    with undisturbed(), same_modes(model), same_buffers(model, inputs):
        for mode in (True, False):
            if not mode and before[0] is before[1]:
                graphs[False] = graphs[True]
                break
            model.train(mode)
            unpack_all(model)  # regions of the other mode have packed weights that layers read here
            graphs[mode], found = _with_regions(model, before[0 if mode else 1], inputs, backend)
            reports = reports or found
    result = TwoModeGraphModule(model, graphs[True], graphs[False], model.__dict__.get("_held_back"))
    regions = {name: one for name, one in result.named_modules() if isinstance(one, TrainingRegion)}
    keep_plain(result, PlainGraphs(*before, [*regions], (*reports, *_outside(result, reports))))
    _detach_packings(result, reports, _read_weights(graphs.values()))
    leave_packed_out(result)
    for region in regions.values():
        region.is_new = True
    POOL.clear()
    return_free_memory()
    return result


def _with_regions(
    model: nn.Module, graph: fx.Graph, inputs: tuple[Any, ...], backend: Any
) -> tuple[fx.Graph, tuple[RegionReport, ...]]:
    """A graph with regions, whose modules are added to the model."""
    graph_module = fx.GraphModule(model, copy.deepcopy(graph))
    graph_module.train(model.training)
    Functionalize().run(graph_module, Analyses(graph_module, [inputs]))
    graph_module.recompile()
    outcome = Regions(backend).run(graph_module, Analyses(graph_module, [inputs]))
    for node in graph_module.graph.nodes:
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, TrainingRegion):
            node.target = free_name(model)
            model.add_module(node.target, module)
    return graph_module.graph, outcome.regions


def _outside(model: nn.Module, reports: Sequence[RegionReport]) -> Iterator[RegionReport]:
    """Layers that no report names, since no graph calls them."""
    named = {name for report in reports for name in report.layers}
    for name, module in model.named_modules():
        if isinstance(module, CONTRACTIONS) and name not in named:
            reason = "it is inside a module that could not be traced, or shapes around it do not fit a region"
            yield RegionReport((name,), None, None, False, reason)


def _read_weights(graphs: Iterable[fx.Graph]) -> set[str]:
    """What graphs read by name, as ``layer.weight`` in a forward, beside what layers read themselves."""
    return {str(node.target) for graph in graphs for node in graph.nodes if node.op == "get_attr"}


def _detach_packings(model: nn.Module, reports: Sequence[RegionReport], read: set[str]) -> None:
    """Let only those weights be packed whose layers are all in regions, and that nothing else reads."""
    named = model.named_parameters(remove_duplicate=False)
    shared = {id(parameter) for name, parameter in named if name in read}
    taken = {name for report in reports if report.taken for name in report.layers}
    modules = {id(model.get_submodule(name)) for name in taken}
    for masked in masked_weights(model):
        in_regions = {id(module) for module, _, _ in masked.holders} <= modules
        if not in_regions or id(masked.weight) in shared:
            for module, _, _ in masked.holders:
                detach_packings(module)
    unpack_all(model)  # optimizers may ask for the shapes of weights
