"""Writes the backward pass: the instructions in reverse, each from the gradient of its result.

The gradient of a combination is complete when its turn comes. A convolution's result that one
combination alone reads gets no gradient of its own in memory: it is computed block by block from the
combination's, where the convolution's turn needs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from sparsefx.kernels.codegen.training.combine import Pooling, Sum, combine, unpooled
from sparsefx.kernels.codegen.training.derivative import Derivative, derivative, gradient_sums
from sparsefx.kernels.codegen.training.statistics import normalise_backward, sum_of_lanes
from sparsefx.kernels.codegen.training.weight_gradient import weight_gradient
from sparsefx.kernels.ir.activation import NO_ACTIVATION
from sparsefx.kernels.ir.program import DHW, dhw
from sparsefx.kernels.planner.steps import Address, Argument
from sparsefx.kernels.training.blocks import Blocks
from sparsefx.kernels.training.forms import TensorForm
from sparsefx.kernels.training.plan import (
    Draft,
    covered,
    gradient_tile,
    offsets_of,
    phases_of,
    taps_of,
)
from sparsefx.kernels.training.program import (
    Combination,
    Concatenation,
    Instruction,
    SparseConvolution,
    Summand,
)


@dataclass
class _Route:
    """How the gradient of a summand's source comes from that of its combination.

    Attributes:
        value: the combination.
        summand: which of its summands.
        form: of the derivative.
        factors: three arrays by channel in scratch memory, where the summand is normalised.
    """

    value: int
    summand: Summand
    form: Derivative
    factors: int | None = None


@dataclass
class _Backward:
    draft: Draft
    gradients: dict[int, int] = field(default_factory=dict)
    routes: dict[int, _Route] = field(default_factory=dict)

    def __post_init__(self) -> None:
        program = self.draft.program
        self.wanted = set(self.draft.needed)
        for value, item in enumerate(program.instructions, program.inputs):
            if any(source in self.wanted for source in item.operands) or self._trains(item):
                self.wanted.add(value)

    def _trains(self, item: Instruction) -> bool:
        if isinstance(item, Combination):
            return any(s.normalisation is not None and s.normalisation.affine for s in item.summands)
        if isinstance(item, Concatenation):
            return False
        state = self.draft.layers[item.layer]
        return state.trained or state.bias_trained

    # -- gradients in memory ---------------------------------------------------------------------------

    def at(self, value: int, block: int) -> Address:
        """A block of a value's gradient."""
        return Address("memory", self.gradients[value] + block * self.draft.values[value].block)

    def begin(self, value: int) -> bool:
        """Give a value's gradient memory; whether it had some, to which more is to be added."""
        had = value in self.gradients
        if not had:
            self.gradients[value] = self.draft.scratch.take(self.draft.values[value].bytes)
        return had

    def end(self, value: int) -> None:
        """Give the memory back."""
        self.draft.scratch.give_back(self.gradients.pop(value))

    # -- combinations ----------------------------------------------------------------------------------

    def combination(self, value: int, item: Combination) -> None:
        """The gradients of the summands, or the routes by which they will come."""
        program = self.draft.program
        if len(item.summands) == 2 and item.activation != NO_ACTIVATION:
            self._mask(value, item)
        routed = False
        for summand in item.summands:
            if summand.source not in self.wanted and not self._normalises(summand):
                continue
            route = self._route(value, item, summand)
            source = program.of(summand.source)
            alone = len(program.users(summand.source)) == 1 and summand.source not in program.outputs
            if (
                isinstance(source, SparseConvolution)
                and alone
                and len({*item.operands}) == len(item.operands)
            ):
                self.routes[summand.source] = route
                routed = True
            else:
                if summand.source in self.wanted:
                    self._add(route)
                self._drop(route)
        if not routed:
            self.end(value)

    def _normalises(self, summand: Summand) -> bool:
        return summand.normalisation is not None and summand.normalisation.affine

    def _mask(self, value: int, item: Combination) -> None:
        """Where the activation cut there is no gradient."""
        draft, layout = self.draft, self.draft.values[value]
        for block in range(layout.count):
            sides = (
                ("gradient", layout, self.at(value, block)),
                ("output", layout, draft.kept_at(value, block)),
                ("target", layout, self.at(value, block)),
            )
            for group, arguments in draft.pieces(block, *sides, whole=draft.is_whole(layout, block)):
                form = Derivative(item.activation, "output")
                draft.call(derivative(form), arguments | draft.image(layout, group))

    def _route(self, value: int, item: Combination, summand: Summand) -> _Route:
        normalised = summand.normalisation is not None
        form = Derivative(normalised=normalised, noisy=item.noise is not None)
        if item.activation != NO_ACTIVATION and len(item.summands) == 1 and item.windows is None:
            form = replace(form, activation=item.activation, of="scaled" if normalised else "value")
        route = _Route(value, summand, form)
        if normalised:
            route.factors = self._normalisation(route)
        return route

    def _normalisation(self, route: _Route) -> int:
        """The sums over the batch, and from them the factors of the gradient and those of weight and bias."""
        draft, norm = self.draft, route.summand.normalisation
        assert norm is not None
        source = route.summand.source
        layout = draft.values[source]
        sums = draft.sums(layout.channels)
        with draft.scratch.borrowed(layout.block if self._pooled(route) else 0) as room:
            for block in range(layout.count):
                self._sum_up(route, block, sums, Address("memory", room))
        factors = draft.scratch.take(12 * layout.channels)
        training = draft.norms[norm.layer].training
        arguments: dict[str, Argument] = {
            "sums": sums,
            "count": layout.images * math.prod(layout.size),
            "channels": layout.channels,
            **{
                name: draft.statistics_of(route.value, route.summand, name)
                for name in ("mean", "inverse", "scale")
            },
            **self._factors(factors, layout.channels),
        }
        if norm.affine:
            arguments |= {
                f"{name}_gradient": draft.tensor(f"norm {name} {norm.layer} gradient")
                for name in ("weight", "bias")
            }
        draft.call(normalise_backward(training, norm.affine), arguments)
        draft.scratch.give_back(sums.offset)
        return factors

    def _factors(self, start: int, channels: int) -> dict[str, Argument]:
        names = ("by_gradient", "by_value", "constant")
        return {name: Address("memory", start + 4 * n * channels) for n, name in enumerate(names)}

    def _pooled(self, route: _Route) -> bool:
        item = self.draft.program.of(route.value)
        return isinstance(item, Combination) and item.windows is not None

    def _sum_up(self, route: _Route, block: int, sums: Address, room: Address) -> None:
        draft, layout = self.draft, self.draft.values[route.summand.source]
        whole = draft.is_whole(layout, block)
        gradient = self._before_pooling(route, block, room)
        value = ("value", layout, draft.kept_at(route.summand.source, block))
        noise = self._noise(route, block)
        for group, arguments in draft.pieces(block, value, gradient, *noise, whole=whole):
            arguments |= draft.image(layout, group) | {"sums": sums} | self._arrays(route, ("mean",))
            draft.call(gradient_sums(route.form), arguments)

    def _arrays(self, route: _Route, names: tuple[str, ...]) -> dict[str, Argument]:
        """Arrays by channel that a derivative reads."""
        if not route.form.normalised:
            return {}
        names = (*names, *route.form.factors)
        return {name: self.draft.statistics_of(route.value, route.summand, name) for name in names}

    def _noise(self, route: _Route, block: int) -> list[tuple[str, Blocks, Address]]:
        """What the combination was multiplied by, for a block of the summand's source."""
        item = self.draft.program.of(route.value)
        if not isinstance(item, Combination) or item.noise is None:
            return []
        return [self.draft.noise_side(item.noise, block, self.draft.values[route.summand.source])]

    def _before_pooling(self, route: _Route, block: int, room: Address) -> tuple[str, Blocks, Address]:
        """The gradient of what was pooled, for a block; or that of the combination itself."""
        draft, source = self.draft, self.draft.values[route.summand.source]
        result = draft.values[route.value]
        item = draft.program.of(route.value)
        assert isinstance(item, Combination)
        if item.windows is None:
            same = result.together == source.together
            return "gradient", result, self.at(route.value, block if same else 0)
        draft.clear(room, source)
        same = result.together == source.together
        sides = (
            ("source", source, draft.kept_at(route.summand.source, block)),
            ("target", source, room),
            ("gradient", result, self.at(route.value, block if same else 0)),
        )
        form = Pooling(item.windows.largest, route.form.normalised, item.activation)
        for _, arguments in draft.pieces(block, *sides, whole=False):
            depth, height, width = result.size
            image: dict[str, Argument] = {"depth": depth, "height": height, "width": width}
            arguments |= image | {"channels": result.channels} | draft.windows_arguments(item, route.value)
            draft.call(unpooled(form), arguments)
        return "gradient", source, room

    def _derive(
        self, route: _Route, block: int, target: tuple[Blocks, Address], room: Address, added: bool
    ) -> None:
        """A block of the gradient of a summand's source; ``target`` is a block of the source's layout."""
        draft, source = self.draft, self.draft.values[route.summand.source]
        layout, start = target
        gradient = self._before_pooling(route, block, room)
        sides = [("target", layout, start), gradient]
        if "value" in route.form.sides:
            sides.append(("value", source, draft.kept_at(route.summand.source, block)))
        sides += self._noise(route, block)
        masked = route.form.normalised and not source.is_full(block)
        whole = draft.is_whole(source, block) and not masked
        form = replace(route.form, masked=masked, added=added)
        for group, arguments in draft.pieces(block, *sides, whole=whole):
            arguments |= draft.image(source, group) | self._arrays(route, ())
            if route.factors is not None:
                arguments |= self._factors(route.factors, source.channels)
            if form.masked:
                assert group is not None
                arguments["lanes"] = draft.lanes(source, group)
            draft.call(derivative(form), arguments)

    def _add(self, route: _Route) -> None:
        """Add to the gradient of a summand's source in memory."""
        draft, source = self.draft, route.summand.source
        layout = draft.values[source]
        had = self.begin(source)
        with draft.scratch.borrowed(layout.block if self._pooled(route) else 0) as room:
            for block in range(layout.count):
                self._derive(route, block, (layout, self.at(source, block)), Address("memory", room), had)

    def _drop(self, route: _Route) -> None:
        if route.factors is not None:
            self.draft.scratch.give_back(route.factors)

    # -- concatenations --------------------------------------------------------------------------------

    def concatenation(self, value: int, item: Concatenation) -> None:
        """The gradients of the sources, each a part of the channels."""
        draft = self.draft
        for source, first in draft.parts(value, item):
            if source not in self.wanted:
                continue
            layout, had = draft.values[source], self.begin(source)
            for block in range(layout.count):
                target = self.at(source, block)
                part = draft.part_side("source_0", (value, first), layout, block, self.at)
                sides = [("target", layout, target), part, *([("source_1", layout, target)] if had else [])]
                for group, arguments in draft.pieces(block, *sides, whole=draft.is_whole(layout, block)):
                    form = Sum((False,) * (len(sides) - 1))
                    draft.call(combine(form), arguments | draft.image(layout, group))
        self.end(value)

    # -- convolutions ----------------------------------------------------------------------------------

    def convolution(self, value: int, item: SparseConvolution) -> None:
        """The gradients of weight, bias and source."""
        draft, state = self.draft, self.draft.layers[item.layer]
        route = self.routes.pop(value, None)
        result = draft.values[value]
        layout = self._gradient_layout(value, item)
        reads = draft.source_layout(item, value)
        backward = _InputGradient(self, value, item, layout) if item.source in self.wanted else None
        sums = draft.sums(result.channels) if item.biased and state.bias_trained else None
        pooled = route is not None and self._pooled(route)
        with (
            draft.scratch.borrowed(layout.block) as room,
            draft.scratch.borrowed(reads.block if state.trained else 0) as filled,
            draft.scratch.borrowed(result.block if pooled else 0) as unpooled_room,
        ):
            for block in range(result.count):
                gradient = Address("memory", room)
                self._fill(value, route, block, (layout, gradient), Address("memory", unpooled_room))
                if sums is not None:
                    arguments = _side_of(draft, block, layout, gradient)
                    draft.call(gradient_sums(Derivative()), arguments | {"sums": sums})
                if state.trained:
                    source = draft.filled(item, block, reads, Address("memory", filled))
                    self._weight(value, item, source, (layout, gradient))
                if backward is not None:
                    backward.block(block, gradient)
        if sums is not None:
            arguments = {"sums": sums, "channels": result.channels}
            draft.call(sum_of_lanes(), arguments | {"target": draft.tensor(f"bias {item.layer} gradient")})
            draft.scratch.give_back(sums.offset)
        if backward is not None:
            backward.end()
        self._finish(value, route)

    def _finish(self, value: int, route: _Route | None) -> None:
        """Give back what the gradient of a convolution's result came from."""
        if route is None:
            self.end(value)
            return
        self._drop(route)
        if not any(other.value == route.value for other in self.routes.values()):
            self.end(route.value)

    def _gradient_layout(self, value: int, item: SparseConvolution) -> Blocks:
        """A result with zeros around it, for the input's gradient and the last tiles of the weight's."""
        bare = self.draft.values[value]
        before = [0, 0, 0]
        reached = covered(bare, gradient_tile(bare))
        after = [length - own for length, own in zip(reached, bare.size, strict=True)]
        if item.source in self.wanted:
            for phase in phases_of(item.flattened, self.draft.seen(item).size):
                for axis in range(3):
                    shifts = [shift[axis] for shift in phase.shifts] or [0]
                    first = phase.begin[axis] + min(shifts)
                    last = phase.begin[axis] + phase.count[axis] - 1 + max(shifts)
                    before[axis] = max(before[axis], -first)
                    after[axis] = max(after[axis], last - (bare.size[axis] - 1))
        return replace(bare, before=dhw(before), after=dhw(after))

    def _fill(
        self, value: int, route: _Route | None, block: int, target: tuple[Blocks, Address], room: Address
    ) -> None:
        """A block of the gradient of a convolution's result, with zeros around it."""
        draft = self.draft
        layout, start = target
        whole = draft.is_whole(layout, block)
        if block == 0 or not whole:
            draft.clear(start, layout)
        if route is not None:
            self._derive(route, block, target, room, added=False)
            return
        sides = (("target", layout, start), ("source_0", draft.values[value], self.at(value, block)))
        for group, arguments in draft.pieces(block, *sides, whole=whole):
            draft.call(combine(Sum((False,))), arguments | draft.image(layout, group))

    def _weight(
        self, value: int, item: SparseConvolution, source: Address, gradient: tuple[Blocks, Address]
    ) -> None:
        """Add a block's share to the gradient of the weights."""
        draft, state = self.draft, self.draft.layers[item.layer]
        layout, start = gradient
        bare, reads = draft.values[value], draft.source_layout(item, value)
        listed = (state.pattern if state.every is None else state.every).forward
        tile = replace(gradient_tile(bare), stride=item.stride[2], short=listed.codes.element_size() == 2)
        depth, height, _ = bare.size
        draft.call(
            weight_gradient(tile),
            {
                "source": source,
                "source_depth": reads.depth * item.stride[0],
                "source_row": reads.row * item.stride[1],
                "gradient": start + layout.start,
                "gradient_channel": layout.channel,
                "gradient_depth": layout.depth,
                "gradient_row": layout.row,
                "weights": draft.tensor(f"weight {item.layer} gradient"),
                "rows": listed.rows.numpy(),
                "codes": listed.codes.numpy(),
                "offsets": offsets_of(reads, item.flattened.in_channels, taps_of(item.flattened)),
                "channels": item.out_channels,
                "segments": listed.segments,
                "depth": depth,
                "height": -(-height // tile.height),
                "width": -(-bare.columns // tile.width),
            },
        )


class _InputGradient:
    """The gradient of a convolution's source, by its phases; added where there is some already."""

    def __init__(self, backward: _Backward, value: int, item: SparseConvolution, layout: Blocks) -> None:
        self._backward, self._draft, self._item, self._layout = backward, backward.draft, item, layout
        draft = self._draft
        self._source = draft.seen(item)
        item = self._item = item.flattened
        self._added = backward.begin(item.source)
        self._room = draft.scratch.take(self._source.block) if self._added else None
        self._phases = phases_of(item, self._source.size)
        listed = draft.layers[item.layer].pattern.backward
        self._values = [draft.reordered(item.layer, phase.order) for phase in listed]
        self._offsets = [
            offsets_of(layout, item.out_channels, phase.shifts or ((0, 0, 0),)) for phase in self._phases
        ]
        self._bias = np.zeros(item.in_channels, np.float32)

    def block(self, block: int, gradient: Address) -> None:
        """Compute a block."""
        draft, item, layout = self._draft, self._item, self._layout
        target = self._backward.at(item.source, block)
        result = target if self._room is None else Address("memory", self._room)
        listed = draft.layers[item.layer].pattern.backward
        for phase, nonzeros, (values, _), offsets in zip(
            self._phases, listed, self._values, self._offsets, strict=True
        ):
            begin = sum(n * step for n, step in zip(phase.begin, layout.steps, strict=True))
            first = sum(n * step for n, step in zip(phase.first, self._source.steps, strict=True))
            depth, height, width = phase.count
            draft.convolve(
                nonzeros,
                values,
                self._bias,
                (item.out_channels, item.in_channels),
                offsets,
                (gradient + layout.start + begin, (layout.depth, layout.row, 1), layout.pitch),
                (result + first, self._source, item.stride),
                (depth, height, width * self._source.together),
                _reach(item),
            )
        if self._room is not None:
            sides = (
                ("target", self._source, target),
                ("source_0", self._source, target),
                ("source_1", self._source, result),
            )
            whole = draft.is_whole(self._source, block)
            for group, arguments in draft.pieces(block, *sides, whole=whole):
                arguments |= draft.image(self._source, group)
                draft.call(combine(Sum((False, False))), arguments)

    def end(self) -> None:
        """Give memory back."""
        for room in (*(room for _, room in self._values), self._room):
            if room is not None:
                self._draft.scratch.give_back(room)


def write_backward(draft: Draft, outputs: tuple[TensorForm, ...], inputs: tuple[TensorForm, ...]) -> None:
    """Write all calls of the backward pass, after those of the forward pass were.

    Args:
        draft: of the step.
        outputs: forms of the gradients of the outputs, each of its output's shape.
        inputs: forms of the tensors that the gradients of the needed inputs go to.
    """
    program, backward = draft.program, _Backward(draft)
    for index, (value, form) in enumerate(zip(program.outputs, outputs, strict=True)):
        if value in backward.wanted and value not in backward.gradients:
            backward.begin(value)
            start = backward.at(value, 0)
            draft.pack(draft.tensor(f"gradient {index}"), form, draft.values[value], start)
    for value in reversed(range(program.inputs, program.inputs + len(program.instructions))):
        item = program.of(value)
        if value in backward.gradients or value in backward.routes:
            if isinstance(item, SparseConvolution):
                backward.convolution(value, item)
            elif isinstance(item, Combination):
                backward.combination(value, item)
            elif item is not None:
                backward.concatenation(value, item)
    for value, form in zip(draft.needed, inputs, strict=True):
        layout = draft.values[value]
        if value not in backward.gradients:
            continue
        draft.unpack(backward.at(value, 0), layout, draft.tensor(f"input gradient {value}"), form)


def _reach(item: SparseConvolution) -> DHW:
    depth, height, width = (-(-window // step) for window, step in zip(item.kernel, item.stride, strict=True))
    return depth, height, width


def _side_of(draft: Draft, block: int, layout: Blocks, start: Address) -> dict[str, Argument]:
    ((_, arguments),) = draft.pieces(block, ("gradient", layout, start))
    return arguments | draft.image(layout, None)
