"""``export``: from a masked model to a smaller dense one that computes the same function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from sparsefx._common.copying import copy_model, without_weight_hooks
from sparsefx._common.inputs import call_of
from sparsefx._common.plain_tensors import check_plain, check_values, dense
from sparsefx._common.subnormal import subnormal
from sparsefx.archive.trial import remember
from sparsefx.errors import ArgumentError
from sparsefx.export_passes import ExportOptions, Kernels, default_passes
from sparsefx.kernels.runtime import native
from sparsefx.kernels.runtime.region import SparseRegion
from sparsefx.masking.layers import MaskedLayer, unmask_layer
from sparsefx.masking.masks import bare, check_invariant, check_unsharded, detach_masks
from sparsefx.passes.capture.module_tracer import reason_of
from sparsefx.passes.capture.undisturbed import undisturbed
from sparsefx.passes.graph.origins import mark, take_origins
from sparsefx.passes.graph.plain_graphs import plain
from sparsefx.passes.manager.partial_compile import Compiled, compile_model
from sparsefx.passes.manager.pipeline import REPORT_IT, Pass, PassReport, Pipeline, Refused
from sparsefx.passes.running.compare import gives, interpret, run
from sparsefx.passes.running.examples import Inputs
from sparsefx.passes.running.leaves import tensors_in
from sparsefx.passes.running.size_search import at_other_sizes
from sparsefx.passes.running.timing import When
from sparsefx.report.export_report import attach_report, compare


def export(
    model: nn.Module,
    example_inputs: Sequence[Any] = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    align: int = 1,
    gather: When = "auto",
    round_groups: When = "auto",
    fold_batchnorm: bool = True,
    kernels: Kernels = "dense",
    passes: Iterable[Pass] | None = None,
) -> nn.Module:
    """Remove the channels that do nothing, without changing the function.

    Export folds BatchNorm. It folds channels that do not vary with the input into the layers that read
    them. It cuts every slice that no output reads out of the graph. An operation that the analysis does not
    know keeps all its channels, and the report names it.

    Args:
        model: a sparsified model, or any model with zero weights; it is not changed.
        example_inputs: positional arguments of ``model``, e.g. ``(x,)``. They set the number of dimensions
            and the data types. Export finds by trial which dimensions can vary (``.report.sizes``). The
            result accepts other sizes of these; another size of a fixed dimension raises a ``ValueError``.
            One or two samples suffice; more only take longer.
        example_kwargs: arguments of ``model`` that go by name, e.g. ``{"mask": mask}``.
        align: round layer widths up to a multiple of this with channels that could be removed.
        gather: whether a layer that reads few channels of a residual stream gathers them first, and one
            that writes few adds them to it. ``"auto"`` does so where it is faster on this machine at the
            example's size (the result may differ from run to run). The others are ``"never"`` and
            ``"always"``.
        round_groups: whether the groups of a convolution keep more channels than they need, up to 2, 4 or
            a multiple of 8, for which kernels are made. ``"auto"`` does so where the model is then faster
            on this machine. The others are ``"never"`` and ``"always"``.
        fold_batchnorm: fold BatchNorm and remove dropout. With False both stay, and the result can be
            trained further; :meth:`SparseMomentum.compact` makes the optimizer for it. ``"auto"`` then
            gathers and rounds nothing, because all remaining weights are trained.
        kernels: what computes the remaining layers. ``"dense"``: torch's kernels. ``"sparse"``: kernels
            whose time grows with the number of nonzero weights, on the CPU, in float32 and without
            gradients. ``"auto"``: the faster of the two on this machine at the example's size, for each
            part of the graph and then for the whole graph.
        passes: the passes to run instead of :func:`sparsefx.default_passes`. Leave the options above that
            choose passes at their defaults; ``fold_batchnorm`` still says whether the result can be trained
            further. A pipeline that is cut short gives a larger result with the same function.

    Returns:
        A ``torch.fx.GraphModule`` in evaluation mode without masks. Its outputs are those of
        ``model.eval()`` up to float rounding. ``.report`` lists what was removed. If the model's own
        forward cannot be traced, or a pass would change its outputs, export compiles the parts that it can
        and warns.

        With ``fold_batchnorm=False``, ``train()`` switches BatchNorm to the statistics of the batch and
        dropout on, wherever the model did. No weight is masked any more, so every remaining weight can
        change. Folded constants (the bias of an empty row, what BatchNorm makes of it) are those of
        evaluation and are no longer trained. Outputs that a model computes only in training, such as an
        auxiliary head, are left out, with a warning. ``.origins`` gives the original parameter, and the
        indices in it, of each parameter.

    Raises:
        InvariantError: a weight is not zero outside its mask.
        ArgumentError: the example inputs do not run; they or the model have no values; a parameter holds
            NaN; the model cannot be copied or already has sparse kernels; ``align`` is not a positive
            integer; ``gather``, ``round_groups`` or ``kernels`` is none of its values; ``kernels`` is not
            ``"dense"`` and ``fold_batchnorm`` is False; ``passes`` holds something that is not a pass, or
            comes with options that choose passes.
        MissingPackageError: ``kernels="sparse"`` without llvmlite. With ``"auto"`` export warns instead.

    Example:
        >>> import torch, sparsefx
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = net[0].weight.data[3:].zero_()
        >>> compact = sparsefx.export(net, (torch.randn(1, 4),))
        >>> compact.get_submodule("0").out_features
        3
    """
    options = ExportOptions(align, gather, round_groups, fold_batchnorm, kernels)
    inputs = _check(model, example_inputs, example_kwargs)
    pipeline = _pipeline(_with_compiler(options), passes)
    model = plain(model)
    check_invariant(model)
    with undisturbed():
        return _export(model, inputs, pipeline, trains=not fold_batchnorm)


def _export(model: nn.Module, inputs: tuple[Any, ...], pipeline: Pipeline, *, trains: bool) -> nn.Module:
    original = _plain_copy(model, trains=trains)
    expected = _expected(original, inputs)
    _flush(original, inputs, expected)
    if trains:
        mark(bare(original))
    trials = at_other_sizes(lambda values: run(original, values), inputs)

    def rewrite(graph_module: fx.GraphModule, values: Inputs) -> list[PassReport]:
        verify = _Verify(graph_module, values[0])
        return pipeline.run(graph_module, values, check=verify)

    with _without_nested_tensors():
        compiled = compile_model(original, trials, rewrite, trains=trains)
    if not gives(lambda: run(compiled.model, inputs), expected):
        reason = compiled.opaque.get("", "its parts do not fit together as graphs")
        compiled = Compiled(original, opaque={"": reason})
    if trains:
        if _trains(original, inputs) and not _trains(compiled.model, inputs):
            compiled = Compiled(original, opaque={"": "what is left of it would not run in training"})
        compiled.model.origins = take_origins(compiled.model)  # type: ignore[assignment]
    _flush(compiled.model, inputs, expected)  # what passes have multiplied
    _warn(compiled)
    attach_report(compiled.model, compare(original, compiled.model, inputs, compiled))
    remember(compiled.model, original)
    return compiled.model


def _pipeline(options: ExportOptions, passes: Iterable[Pass] | None) -> Pipeline:
    """The default passes of the options, or the given ones."""
    if passes is None:
        return default_passes(options)
    if replace(options, fold_batchnorm=True) != ExportOptions():
        raise ArgumentError(
            "passes= together with align, gather, round_groups or kernels: these choose passes; give them to "
            "sparsefx.ExportOptions and edit sparsefx.default_passes(options)"
        )
    pipeline = Pipeline(tuple(passes))
    for step in pipeline:
        if not isinstance(getattr(step, "name", None), str) or not callable(getattr(step, "run", None)):
            raise ArgumentError(
                f"passes holds {step!r}, which is no pass: a pass has a name and run(graph, analyses)"
            )
    if not options.fold_batchnorm and {"fold_batchnorm", "constant_folding"} & {*pipeline.names}:
        raise ArgumentError(
            "passes fold BatchNorm or constants, with fold_batchnorm=False; take "
            "sparsefx.default_passes(sparsefx.ExportOptions(fold_batchnorm=False))"
        )
    return pipeline


def _with_compiler(options: ExportOptions) -> ExportOptions:
    """The options, with dense kernels where ``"auto"`` finds no compiler for sparse ones."""
    if options.kernels == "sparse":
        native.require()
    if options.kernels == "auto" and not native.available():
        _tell_missing()
        return replace(options, kernels="dense")
    return options


@cache
def _tell_missing() -> None:
    """Once in a process."""
    warnings.warn(f"kernels='auto' takes dense ones: {native.MISSING}", stacklevel=4)


def _check(
    model: nn.Module, example_inputs: Sequence[Any], example_kwargs: Mapping[str, Any] | None
) -> tuple[Any, ...]:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, SparseRegion) for module in model.modules()):
        raise ArgumentError(
            "model has sparse kernels in it, so it was exported already; export the model it came from"
        )
    check_unsharded(model, "export")
    check_plain(model, "export")
    inputs = call_of(example_inputs, example_kwargs)
    _check_tensors(model, inputs)
    return inputs


def _check_tensors(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuse parameters, buffers and inputs without values, and parameters that hold NaN."""
    check_values(model)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and bool(dense(parameter).isnan().any()):
            raise ArgumentError(
                f"{name} of model is not finite: it holds NaN, and 0 times that is not 0; load a "
                "checkpoint from before training diverged (outside of masks sparsefx.apply_masks clears it)"
            )
    for tensor in tensors_in(inputs):
        if tensor.is_meta or not tensor.numel():
            raise ArgumentError(
                f"example_inputs hold a tensor without values, of shape {tuple(tensor.shape)} on "
                f"{tensor.device}; a sample is needed to follow the model's computation"
            )


def _plain_copy(model: nn.Module, *, trains: bool) -> nn.Module:
    """A copy in evaluation mode with ordinary layers in the place of masked ones."""
    model = getattr(model, "_orig_mod", model)  # torch.compile
    hookless = without_weight_hooks(model, norms=not trains)  # whose own parameters an optimizer has
    plain = (copy_model(model) if hookless is model else hookless).eval()
    for module in plain.modules():
        if isinstance(module, MaskedLayer):
            unmask_layer(module)
        else:
            detach_masks(module)
    return plain


def _expected(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The model's outputs on the example inputs."""
    try:
        return run(model, inputs)
    except Exception as error:  # the user's own forward may raise anything
        raise ArgumentError(f"example_inputs do not run through the model: {error}") from error


@torch.no_grad()
def _flush(model: nn.Module, inputs: tuple[Any, ...], expected: Any) -> None:
    """Set subnormal parameters to 0, which computes the same and not tens of times slower.

    Warns:
        UserWarning: the results would differ, as where a model divides by the norm of what it computes.
    """
    found = [(one, where) for one in model.parameters() if bool((where := subnormal(one)).any())]
    before = [one[where] for one, where in found]
    for one, where in found:
        one.masked_fill_(where, 0)
    if not found or gives(lambda: run(model, inputs), expected):
        return
    for (one, where), values in zip(found, before, strict=True):
        one[where] = values
    warnings.warn(
        f"export: {sum(map(len, before))} parameters are subnormal (less than about 1e-38); results depend "
        "on them, so they stay, and many CPUs compute slowly with them: scale the weights up",
        stacklevel=4,
    )


@contextmanager
def _without_nested_tensors() -> Iterator[None]:
    """Keep transformer layers that stay Python off torch's fast path, whose nested tensors have no shape."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _trains(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a model runs in training mode; it is left in evaluation."""
    state = torch.get_rng_state()
    try:
        run(model.train(), inputs)
    except Exception:  # a BatchNorm refuses a batch of one, say
        return False
    finally:
        model.eval()
        torch.set_rng_state(state)
    return True


def _warn(compiled: Compiled) -> None:
    """Say what stays Python, and why, where that costs more than a single module."""
    for name, difference in compiled.as_in_evaluation.items():
        warnings.warn(
            f"export: {name or 'the model'} does in training what it does in evaluation, apart from "
            f"BatchNorm and dropout: {difference}",
            stacklevel=4,
        )
    reason = compiled.opaque.get("")
    if reason is None:
        return
    what = _what_was_done(len(compiled.graphs))
    warnings.warn(f"export: {what}, because its forward stays Python: {reason}", stacklevel=4)


def _what_was_done(parts: int) -> str:
    if not parts:
        return "the model was returned whole, without its masks"
    if parts == 1:
        return "one part of it was compiled"
    return f"{parts} parts of it were compiled, each for itself"


class _Verify:
    """Checks after a pass that the outputs on the example inputs are still those of the captured graph."""

    def __init__(self, graph_module: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
        try:
            self.expected = interpret(graph_module, inputs)
        except Exception as error:  # of what tracing put between the calls, which it tried
            raise Refused(f"its graph does not run ({reason_of(error)})") from error

    def __call__(self, name: str, outputs: Callable[[], Any]) -> None:
        if not gives(outputs, self.expected):
            raise Refused(f"{name} would change its outputs; {REPORT_IT}")
