"""Writes the forward pass: convolutions block by block, and the sums that normalisation needs meanwhile."""

from __future__ import annotations

import math

import numpy as np

from sparsefx.kernels.codegen.training.combine import Sum, combine
from sparsefx.kernels.codegen.training.derivative import moments
from sparsefx.kernels.codegen.training.statistics import normalise
from sparsefx.kernels.planner.steps import Address, Argument, float_bits
from sparsefx.kernels.training.forms import TensorForm
from sparsefx.kernels.training.plan import STATISTICS, Draft, offsets_of, taps_of
from sparsefx.kernels.training.program import (
    Combination,
    Concatenation,
    Normalisation,
    SparseConvolution,
)


def write_forward(draft: Draft, outputs: tuple[TensorForm, ...]) -> None:
    """Write all calls of the forward pass.

    Args:
        draft: of the step.
        outputs: forms of the tensors that the outputs go to, ``[N, C, *size]`` or ``[N, C]``.
    """
    program = draft.program
    for value, form in enumerate(draft.sources):
        draft.keep(value)
        draft.pack(draft.tensor(f"input {value}"), form, draft.values[value], draft.kept_at(value, 0))
    for value, item in enumerate(program.instructions, program.inputs):
        if isinstance(item, SparseConvolution):
            _convolution(draft, value, item)
        elif isinstance(item, Combination):
            _combination(draft, value, item)
        else:
            _concatenation(draft, value, item)
    for index, (value, form) in enumerate(zip(program.outputs, outputs, strict=True)):
        draft.unpack(draft.kept_at(value, 0), draft.values[value], draft.tensor(f"output {index}"), form)


def _convolution(draft: Draft, value: int, item: SparseConvolution) -> None:
    draft.keep(value)
    result = draft.values[value]
    layout = draft.source_layout(item, value)
    flat = item.flattened
    listed = draft.layers[item.layer].pattern.forward
    values, borrowed = draft.reordered(item.layer, listed.order)
    bias: Address | np.ndarray = (
        draft.tensor(f"bias {item.layer}") if item.biased else np.zeros(item.out_channels, np.float32)
    )
    normalised = _normalisations(draft, value)
    sums = {norm: draft.sums(result.channels) for norm in normalised}
    steps = (layout.depth * item.stride[0], layout.row * item.stride[1], item.stride[2])
    offsets = offsets_of(layout, flat.in_channels, taps_of(flat))
    depth, height, _ = result.size
    with draft.scratch.borrowed(layout.block) as room:
        for block in range(result.count):
            source = draft.filled(item, block, layout, Address("memory", room))
            draft.convolve(
                listed,
                values,
                bias,
                (flat.in_channels, flat.out_channels),
                offsets,
                (source, steps, layout.pitch),
                (draft.kept_at(value, block), result, (1, 1, 1)),
                (depth, height, result.columns),
                flat.kernel,
            )
            for start in sums.values():
                _moments(draft, value, block, start)
    for norm, start in sums.items():
        _normalise(draft, norm, value, start)
        draft.scratch.give_back(start.offset)
    if borrowed is not None:
        draft.scratch.give_back(borrowed)


def _normalisations(draft: Draft, value: int) -> list[tuple[int, Normalisation]]:
    """The normalisations of a value by the batch's statistics, each with the value that it is part of."""
    program = draft.program
    found = []
    for user in program.users(value):
        item = program.of(user)
        if isinstance(item, Combination):
            for summand in item.summands:
                norm = summand.normalisation
                if summand.source == value and norm is not None and draft.norms[norm.layer].training:
                    found.append((user, norm))
    return found


def _moments(draft: Draft, value: int, block: int, sums: Address) -> None:
    layout = draft.values[value]
    origin = draft.kept_at(value, 0) + layout.start
    full = layout.is_full(block)
    for group, arguments in draft.pieces(block, ("source", layout, draft.kept_at(value, block)), whole=full):
        arguments |= draft.image(layout, group) | {"origin": origin, "origin_channel": layout.channel}
        if group is not None:
            arguments["lanes"] = draft.lanes(layout, group)
        draft.call(moments(group is not None), arguments | {"sums": sums})


def _normalise(draft: Draft, norm: tuple[int, Normalisation], source: int, sums: Address | None) -> None:
    """From sums, or from the running statistics, the factors by channel."""
    user, item = norm
    layout, state = draft.values[source], draft.norms[item.layer]
    start = draft.statistics[user, item.layer] = draft.kept.take(16 * layout.channels)
    arguments: dict[str, Argument] = {"eps": float_bits(item.eps), "channels": layout.channels}
    for index, name in enumerate(STATISTICS):
        arguments[name] = draft.tensor("kept", start + 4 * index * layout.channels)
    if item.affine:
        arguments |= {name: draft.tensor(f"norm {name} {item.layer}") for name in ("weight", "bias")}
    tracked = item.tracked and (state.updated or not state.training)
    if tracked:
        names = ("running_mean", "running_var")
        arguments |= {name: draft.tensor(f"norm {name} {item.layer}") for name in names}
    if state.training and sums is not None:
        arguments |= {"sums": sums, "count": layout.images * math.prod(layout.size)}
        arguments |= {"origin": draft.kept_at(source, 0) + layout.start, "origin_channel": layout.channel}
        if tracked:
            arguments["momentum"] = draft.tensor(f"norm momentum {item.layer}")
    draft.call(normalise(state.training, item.affine, tracked), arguments)


def _combination(draft: Draft, value: int, item: Combination) -> None:
    for summand in item.summands:
        norm = summand.normalisation
        if norm is None or (value, norm.layer) in draft.statistics:
            continue
        source = summand.source
        if not draft.norms[norm.layer].training:
            _normalise(draft, (value, norm), source, None)
            continue
        sums = draft.sums(draft.values[source].channels)
        for block in range(draft.values[source].count):
            _moments(draft, source, block, sums)
        _normalise(draft, (value, norm), source, sums)
        draft.scratch.give_back(sums.offset)
    if not draft.program.is_kept(value):
        return
    draft.keep(value)
    layout = draft.values[value]
    for block in range(layout.count):
        target = draft.kept_at(value, block)
        draft.combined(item, value, block, layout, target, draft.is_whole(layout, block))


def _concatenation(draft: Draft, value: int, item: Concatenation) -> None:
    draft.keep(value)
    for source, first in draft.parts(value, item):
        layout = draft.values[source]
        for block in range(layout.count):
            sides = (
                ("source_0", layout, draft.kept_at(source, block)),
                draft.part_side("target", (value, first), layout, block, draft.kept_at),
            )
            for group, arguments in draft.pieces(block, *sides, whole=draft.is_whole(layout, block)):
                draft.call(combine(Sum((False,))), arguments | draft.image(layout, group))
