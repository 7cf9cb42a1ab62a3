"""``sparsify``: from any model to the same model with masked layers, as a ``torch.fx`` graph."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from sparsefx._common.copying import copy_model
from sparsefx._common.distributions import Distribution, active_counts
from sparsefx._common.inputs import call_of
from sparsefx._common.seeds import given_generator
from sparsefx.errors import ArgumentError
from sparsefx.masking.first_masks import number_of_outputs, random_mask, warn_of_empty
from sparsefx.masking.layers import MASKABLE, mask_layer
from sparsefx.masking.load_masks import expect_all_masks
from sparsefx.masking.mask_record import has_masks, mask_names
from sparsefx.masking.masks import attach_mask, check_unsharded, masked_weights
from sparsefx.masking.replicas import leave_out
from sparsefx.masking.selection import Candidate, Selector, find_candidates, find_computed, select_dense
from sparsefx.passes.capture.capture import Capture, capture
from sparsefx.passes.capture.module_tracer import restore_rng, rng_state
from sparsefx.passes.capture.undisturbed import same_modes
from sparsefx.passes.graph.graph_module import TwoModeGraphModule
from sparsefx.passes.running.compare import gives, run


def sparsify(
    model: nn.Module,
    density: float = 0.1,
    *,
    distribution: str | Distribution = "uniform",
    dense: Selector | Iterable[Selector] = (),
    trace: bool = True,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a copy of a model whose Linear and Conv weights are masked, sparse from the start.

    ``nn.Linear``, ``nn.Conv1d/2d/3d``, ``nn.ConvTranspose1d/2d/3d`` (and subclasses), and parameters
    handed to ``F.linear`` or ``F.convNd``, get a random mask with an exact number of active weights
    (Dettmers & Zettlemoyer 2019, section 3: a fraction of every layer removed at random, the rest
    kept as initialised). Every output of a layer begins with a weight, where there are so many. Biases,
    norms and embeddings stay dense. A tied weight has one mask; one tied to something that stays dense
    stays dense.

    Args:
        model: any model; it is not changed.
        density: fraction of the maskable weights that stay active, in (0, 1].
        distribution: how the density is spread over layers: ``"uniform"``, ``"erdos_renyi"``,
            ``"erk"``, ``"set"``, or a function ``(shapes, density) -> densities``.
        dense: layers that stay dense and do not count towards ``density``: names of layers or
            containers, globs, module types, or predicates ``(name, module) -> bool``; one or many.
        trace: capture the model as a ``torch.fx.GraphModule``. A part that does not trace stays a
            Python module, is named in one warning, and its layers are masked all the same. With
            ``trace=False`` the copy keeps the model's class and methods.
        seed: seed of the random masks; None draws them from ``generator``.
        generator: source of the random masks; torch's default generator by default.
        example_inputs: positional arguments of ``model``, e.g. ``(x,)``. With them, the graphs are run beside
            the model's own forward, in training and in evaluation; where the results differ the model stays
            Python, with a warning: one whose forward asks ``torch.is_grad_enabled()``, say, since a graph
            has the branch with gradients. A BatchNorm needs two samples in training.
        example_kwargs: arguments of ``model`` that go by name, e.g. ``{"mask": mask}``, for the same.

    Returns:
        The sparse model, in the mode (train or eval) of the original. Its ``state_dict`` has the
        original's keys plus one mask a layer; a dense checkpoint loads into it.

    Raises:
        ArgumentError: ``density`` is outside (0, 1], the model has no layer to mask or is masked
            already, cannot be copied, or does not run on ``example_inputs``; a layer is lazy;
            ``distribution`` or ``dense`` names something unknown; or ``seed`` and ``generator`` are both
            given.

    Warns:
        UserWarning: parts of the model stay Python, or layers begin without a weight.

    Example:
        >>> import torch, sparsefx
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> sparse = sparsefx.sparsify(net, density=0.25, dense="2")
        >>> int(sparse.get_submodule("0").mask.sum())
        32
    """
    _check(model, density)
    generator = given_generator(seed, generator)
    given = example_inputs is not None or example_kwargs
    inputs = call_of(example_inputs or (), example_kwargs) if given else None
    sparse = copy_model(model)
    captures, held_back = _capture_both_modes(sparse) if trace else ({}, {})
    graphs = [captured.graph for captured in captures.values() if captured.graph is not None]
    candidates, computed = find_candidates(sparse, graphs), find_computed(sparse)
    kept_dense = select_dense(candidates + computed, dense, sparse)
    masked = [candidate for candidate in candidates if candidate.name not in kept_dense]
    computed_names = [candidate.name for candidate in computed if candidate.name not in kept_dense]
    if not masked:
        raise ArgumentError(_nothing_to_mask(model, kept_dense, computed_names))
    expect_all_masks(sparse)
    _attach_masks(masked, density, distribution, generator)
    warn_of_empty(masked_weights(sparse), "sparsify")
    _warn_conv1d(sparse)
    if computed_names:
        warnings.warn(f"sparsify: {_stay_dense(computed_names)}", stacklevel=2)
    if trace:
        traced = _as_graph_module(sparse, captures, held_back)
        differs = ""
        if traced is not sparse:
            differs = _own_call(model) if inputs is None else _difference(sparse, traced, inputs)
        _warn_opaque(captures, differs)
        sparse = sparse if differs else traced
    leave_out(sparse, mask_names(sparse))
    return sparse


def _check(model: nn.Module, density: float) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(density, numbers.Real) or not 0 < density <= 1:
        raise ArgumentError(f"density={density!r} is outside (0, 1]; 0.05 keeps 5% of the weights")
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError("model is compiled by torch.jit; sparsify the model as it was before that")
    check_unsharded(model, "sparsify")
    if any(has_masks(module) for module in model.modules()):
        raise ArgumentError("model is masked already; sparsify the dense model it came from")


def _nothing_to_mask(model: nn.Module, kept_dense: set[str], computed: list[str]) -> str:
    if kept_dense:
        return f"dense= keeps every maskable layer of {type(model).__name__} dense; leave some to mask"
    if computed:
        return f"model {type(model).__name__} has no layer to mask: {_stay_dense(computed)}"
    kinds = ", ".join(kind.__name__ for kind in MASKABLE)
    looked = f"model {type(model).__name__} has no layer to mask (looked for {kinds} and functional uses)"
    if _conv1d(model):
        looked += "; sparsefx.integrations.transformers.conv1d_to_linear makes its Conv1D linear layers"
    return looked


def _stay_dense(computed: list[str]) -> str:
    return (
        f"{len(computed)} layers stay dense ({_some(computed)}), because their weight is no plain parameter: "
        "it is computed at each call, or quantised. torch.nn.utils.prune.remove(layer, 'weight'), "
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') and the like make it one; name "
        "them in dense= to leave them so"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _conv1d(model: nn.Module) -> list[str]:
    """Names of Transformers' transposed linear layers, which are most of a GPT-2 and no layers of torch's."""
    named = [(name, module) for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    # Others call a wrapper of a convolution so, or a subclass, of which the weight is masked.
    return [
        name
        for name, module in named
        if "weight" in module._parameters and not isinstance(module, MASKABLE) and not has_masks(module)
    ]


def _warn_conv1d(model: nn.Module) -> None:
    names = _conv1d(model)
    if names:
        warnings.warn(
            f"sparsify: {len(names)} Conv1D layers stay dense ({_some(names)}); "
            "sparsefx.integrations.transformers.conv1d_to_linear makes them linear layers, which are masked",
            stacklevel=3,
        )


def _capture_both_modes(model: nn.Module) -> tuple[dict[bool, Capture], dict[bool, list[str]]]:
    """The model's capture in each mode, and the modules that its ``train(mode)`` leaves in the other one.

    Its modes are as before afterwards.
    """
    captures, held_back = {}, {}
    with same_modes(model):
        for mode in (True, False):
            model.train(mode)
            held_back[mode] = [name for name, module in model.named_modules() if module.training is not mode]
            captures[mode] = capture(model, keeps_idle=True)
    return captures, held_back


def _attach_masks(
    candidates: list[Candidate],
    density: float,
    distribution: str | Distribution,
    generator: torch.Generator | None,
) -> None:
    shapes = [candidate.weight.shape for candidate in candidates]
    layers = [candidate.holders[0][1] for candidate in candidates]
    outputs = [number_of_outputs(*pair) for pair in zip(layers, shapes, strict=True)]
    counts = active_counts(shapes, density, distribution, outputs)
    for candidate, shape, layer, active in zip(candidates, shapes, layers, counts, strict=True):
        mask = random_mask(shape, active, generator, layer).to(candidate.weight.device)
        for module, parameter in dict.fromkeys(holder[1:] for holder in candidate.holders):
            if isinstance(module, MASKABLE):
                mask_layer(module, mask)
            else:
                attach_mask(module, parameter, mask)


def _warn_opaque(captures: dict[bool, Capture], differs: str) -> None:
    opaque = {path: reason for captured in captures.values() for path, reason in captured.opaque.items()}
    if differs:
        opaque = {"": differs}
    if opaque:
        reasons = "; ".join(f"{path or 'the model itself'} ({reason})" for path, reason in opaque.items())
        reasons += ". trace=False keeps all of it Python, and says nothing" if "" in opaque else ""
        warnings.warn(
            f"sparsify: not traced, kept as Python modules (their layers are masked all the same): {reasons}",
            stacklevel=3,
        )


def _as_graph_module(
    model: nn.Module, captures: dict[bool, Capture], held_back: dict[bool, list[str]]
) -> nn.Module:
    train_graph, eval_graph = captures[True].graph, captures[False].graph
    if train_graph is None or eval_graph is None:
        return model
    if _same(train_graph, eval_graph):
        eval_graph = train_graph
    return TwoModeGraphModule(model, train_graph, eval_graph, held_back)


def _own_call(model: nn.Module) -> str:
    """What a graph of the forward alone would lose; nothing can tell without example inputs."""
    if isinstance(model, fx.GraphModule) or type(model).__call__ is nn.Module.__call__:
        return ""
    return "its class has a __call__ of its own, which its graph has not; with example_inputs= it is tried"


def _difference(model: nn.Module, traced: nn.Module, inputs: tuple[Any, ...]) -> str:
    """In which mode the graphs return something else than the model that they were traced from, if in any.

    Both hold the same modules, and are left in the mode that they are in.
    """
    modes = {module: module.training for module in model.modules()}
    found = ""
    for mode, name in ((True, "training"), (False, "evaluation")):
        with _repeatable():
            expected = _expected(model.train(mode), inputs, name)
        with _repeatable():
            if not gives(partial(run, traced.train(mode), inputs), expected):
                found = f"its graph of {name} returns something else than its forward"
    traced.train(modes[model])
    for module, mode in modes.items():
        module.training = mode
    return found


@contextmanager
def _repeatable() -> Iterator[None]:
    """Let what comes after it draw the same random numbers."""
    state = rng_state()
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        yield
    restore_rng(state)


def _expected(model: nn.Module, inputs: tuple[Any, ...], mode: str) -> Any:
    try:
        return run(model, inputs)
    except Exception as error:  # the user's own forward may raise anything
        raise ArgumentError(f"example_inputs do not run through the model in {mode}: {error}") from error


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    return str(one.python_code("self").src) == str(other.python_code("self").src)
