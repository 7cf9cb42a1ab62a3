"""What a node of a graph computes, as an instruction: layers by their kind, operations by their name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsefx.kernels.ir.packed import Weights, can_pack, pack, segment_width
from sparsefx.kernels.ir.program import (
    DHW,
    NO_BOUNDS,
    Concatenate,
    Convolution,
    Instruction,
    Mean,
    Pointwise,
    Pool,
    dhw,
)
from sparsefx.kernels.runtime.region import RegionLayer
from sparsefx.passes.graph.in_place import FUNCTIONAL, writes
from sparsefx.passes.graph.layers import is_plain, layer_of
from sparsefx.passes.graph.program import Call, Value
from sparsefx.passes.graph.program import Program as Recorded

IMAGES, ROWS = "images", "rows"
"""Kinds of regions: convolutions on ``[N, C, *size]``, and what follows where images of one element become
``[N, C]``; or linear layers on ``[..., C]``."""

_TYPES = (torch.float32, torch.bfloat16)
_FUNCTIONS = ("sigmoid", "tanh", "silu", "mish", "hardsigmoid", "hardswish", "square")
_PAIRS = {"add": "add", "mul": "multiply", "maximum": "maximum"}
_POWERS = {2: "square", 3: "cube"}
_LARGEST = torch.finfo(torch.float32).max
_FLATTENS = ("flatten", torch.flatten)
_POOLS = {"max_pool2d_with_indices": (2, True), "max_pool3d_with_indices": (3, True)}
_POOLS |= {"avg_pool2d": (2, False), "avg_pool3d": (3, False)}


@dataclass(frozen=True)
class LoweredNode:
    """What a node computes.

    Attributes:
        sources: the nodes that it reads.
        instruction: a function of their numbers, which adds to the weights.
        layer: the layer that it is; None for an operation.
        spreads: whether the second source has one element for a whole image of the first.
    """

    sources: tuple[fx.Node, ...]
    instruction: Callable[[tuple[int, ...], Weights], Instruction]
    layer: RegionLayer | None = None
    spreads: bool = False


@dataclass(frozen=True)
class NodeLowering:
    """A node, in a region of some kind."""

    kind: str
    graph_module: fx.GraphModule
    node: fx.Node
    recorded: Recorded

    def make(self) -> LoweredNode | None:
        """What the node computes; None if no instruction does."""
        if self.node.op not in ("call_module", "call_function", "call_method") or self.why_not():
            return None
        layer = layer_of(self.graph_module, self.node)
        if isinstance(layer, nn.Linear | _ConvNd | _BatchNorm):
            return self._layer(layer) if self._fits() else None
        calls = self.recorded.calls_of(self.node)
        if self.node.target == "contiguous" or (self.node.target in _FLATTENS and not calls):
            return LoweredNode(self._sources, lambda s, _: Pointwise(s[0])) if self._fits() else None
        return self._operation(calls[0]) if len(calls) == 1 and self._fits() else None

    def why_not(self) -> str:
        """Why no region can have the node, whatever is around it; empty where one may."""
        inputs, outputs = (
            values.get(self.node, ()) for values in (self.recorded.node_inputs, self.recorded.node_values)
        )
        types = {value.dtype for value in (*inputs, *outputs)}
        if len(types) != 1 or not types <= {*_TYPES}:
            return "it computes in " + " and ".join(sorted(str(type_) for type_ in types))
        if self._writes():
            return "it writes in place to what others read"
        layer = layer_of(self.graph_module, self.node)
        return self._why_not(layer) if isinstance(layer, nn.Linear | _ConvNd | _BatchNorm) else ""

    def _why_not(self, layer: nn.Linear | _ConvNd | _BatchNorm) -> str:
        """The same, of layers alone."""
        if not is_plain(layer):
            return "it has a hook or a forward of its own"
        if isinstance(layer, _BatchNorm):
            return ""
        if isinstance(layer, _ConvTransposeNd):
            return "it is a transposed convolution"
        if isinstance(layer, _ConvNd) and layer.padding_mode != "zeros":
            return f"it pads by padding_mode={layer.padding_mode!r}"
        if isinstance(layer, _ConvNd) and padding_of(layer) is None:
            return "it pads its sides differently"
        if (
            isinstance(layer, _ConvNd)
            and len(self.recorded.node_values[self.node][0].shape) != layer.weight.dim()
        ):
            return "its input has no batch dimension"
        if layer.weight.device.type != "cpu":
            return f"its weight is on {layer.weight.device}"
        groups = layer.groups if isinstance(layer, _ConvNd) else 1
        return "" if can_pack(layer.weight, groups) else "its weight is empty, or too large"

    def _writes(self) -> bool:
        """Whether it writes into a value that others read.

        The augmented assignments that are left are such (:class:`Functionalize`).
        """
        layer = layer_of(self.graph_module, self.node)
        inside = getattr(layer, "inplace", False) or writes(self.node)
        shared = any(len(source.users) > 1 for source in self.node.all_input_nodes)
        return bool(inside) and (shared or self.node.target in FUNCTIONAL)

    def _fits(self) -> bool:
        """Whether its values are images, or rows."""
        shapes = [value.shape for value in self.recorded.node_values[self.node]]
        return len(shapes) >= 1 and (len(shapes[0]) in (2, 3, 4, 5) or self.kind == ROWS)

    @property
    def _sources(self) -> tuple[fx.Node, ...]:
        return tuple(self.node.all_input_nodes)

    def _layer(self, layer: nn.Linear | _ConvNd | _BatchNorm) -> LoweredNode | None:
        if len(self._sources) != 1:
            return None
        if isinstance(layer, _BatchNorm):
            return self._batch_norm(layer)
        if isinstance(layer, nn.Linear):
            flat = len(self.recorded.node_values[self.node][0].shape) == 2
            return self._linear(layer) if self.kind == ROWS or flat else None
        return self._convolution(layer) if self.kind == IMAGES else None

    def _batch_norm(self, layer: _BatchNorm) -> LoweredNode | None:
        mean, variance = layer.running_mean, layer.running_var
        if mean is None or variance is None:
            return None
        if self.kind == ROWS and len(self.recorded.node_values[self.node][0].shape) != 2:
            return None  # its channels are not the last dimension
        weight = torch.ones_like(variance) if layer.weight is None else layer.weight.detach()
        bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.detach()

        def instruction(sources: tuple[int, ...], weights: Weights) -> Pointwise:
            scale = weight * torch.rsqrt(variance + layer.eps)
            begun = weights.add_factors(scale.float(), (bias - mean * scale).float())
            return Pointwise(sources[0], weights=begun, channels=layer.num_features)

        return LoweredNode(self._sources, instruction)

    def _linear(self, layer: nn.Linear) -> LoweredNode:
        """A convolution with one tap."""
        ones = (1, 1, 1)
        return self._weighted(
            layer, (layer.in_features, layer.out_features), (ones, ones, (0, 0, 0), ones), 1
        )

    def _convolution(self, layer: _ConvNd) -> LoweredNode:
        padding = padding_of(layer)
        assert padding is not None
        window = dhw(layer.kernel_size, 1), dhw(layer.stride, 1), dhw(padding, 0)
        channels = layer.in_channels, layer.out_channels
        return self._weighted(layer, channels, (*window, dhw(layer.dilation, 1)), layer.groups)

    def _weighted(
        self,
        layer: nn.Linear | _ConvNd,
        channels: tuple[int, int],
        window: tuple[DHW, DHW, DHW, DHW],
        groups: int,
    ) -> LoweredNode:
        """A layer with these channels in and out, kernel, stride, padding and dilation."""
        weight, bias = layer.weight, layer.bias
        width = segment_width(weight, groups)

        def instruction(sources: tuple[int, ...], weights: Weights) -> Convolution:
            packed = pack(weight, bias, groups, width)
            counts = -(-channels[0] // width), len(packed.values)
            return Convolution(sources[0], weights.add(packed), *channels, *window, *counts)

        return LoweredNode(
            self._sources, instruction, RegionLayer(str(self.node.target), tuple(weight.shape), groups)
        )

    def _operation(self, call: Call) -> LoweredNode | None:
        if call.computed or call.opaque or call.aliases or call.op.namespace != "aten":
            return None
        if any(value.constant is not None for value in call.inputs):
            return None
        if self.kind == IMAGES:
            makers = self._pointwise, self._flatten, self._pool, self._mean, self._concatenate
            return next(filter(None, (make(call) for make in makers)), None)
        return self._pointwise(call)

    def _pointwise(self, call: Call) -> LoweredNode | None:
        if call.name in _PAIRS and len(call.inputs) == 2:
            return self._pair(call)
        if len(self._sources) != 1:
            return None
        line = _line(call)
        if line is not None:
            return self._affine(*line, largest=call.name == "leaky_relu")
        function, bounds = "identity", NO_BOUNDS
        if call.name == "relu":
            bounds = (0.0, inf)
        elif call.name in ("hardtanh", "clamp"):
            low, high = (*call.args[1:], *([None] * 2))[:2] if call.name == "clamp" else _hardtanh(call)
            if not all(isinstance(bound, int | float | None) for bound in (low, high)) or call.kwargs:
                return None
            bounds = (-inf if low is None else float(low), inf if high is None else float(high))
        elif call.name == "gelu":
            function = "gelu_tanh" if call.kwargs.get("approximate") == "tanh" else "gelu"
        elif call.name == "elu" and all(number == 1 for number in call.args[1:]):
            function = "elu"
        elif call.name == "pow" and call.args[1] in _POWERS:
            function = _POWERS[call.args[1]]
        elif call.name in _FUNCTIONS:
            function = call.name
        else:
            return None
        return LoweredNode(self._sources, lambda s, _: Pointwise(s[0], function=function, bounds=bounds))

    def _affine(self, factor: float, summand: float, *, largest: bool = False) -> LoweredNode | None:
        """The same line for all channels, or the larger of it and of the operand itself."""
        value = self.recorded.node_inputs[self.node][0]
        dim = 1 if self.kind == IMAGES else len(value.shape) - 1
        if dim in value.varying:
            return None

        def instruction(sources: tuple[int, ...], weights: Weights) -> Pointwise:
            channels = value.shape[dim]
            factors = (torch.full((channels,), entry, dtype=torch.float32) for entry in (factor, summand))
            begun = weights.add_factors(*factors)
            operand, operation = (sources[0], "maximum") if largest else (None, "")
            return Pointwise(sources[0], operand, operation, begun, channels)

        return LoweredNode(self._sources, instruction)

    def _pair(self, call: Call) -> LoweredNode | None:
        operation = _PAIRS[call.name]
        sources, values = self._sources, self.recorded.node_inputs[self.node]  # in the same order
        if call.kwargs or {len(call.inputs), len(call.args), len(values), len(sources)} != {2}:
            return None
        shapes = [value.shape for value in values]
        if shapes[0] != shapes[1]:
            if self.kind != IMAGES:
                return None
            large = max((0, 1), key=lambda index: shapes[index].numel())
            whole, single = values[large], values[1 - large]
            spread = (*whole.shape[:2], *([1] * (len(whole.shape) - 2)))
            if single.shape != spread or single.varying != whole.varying & {0, 1}:
                return None
            pair = sources[large], sources[1 - large]
            return LoweredNode(pair, lambda s, _: Pointwise(s[0], s[1], operation), spreads=True)
        if any(value.varying != values[0].varying for value in values):
            return None
        return LoweredNode(sources, lambda s, _: Pointwise(s[0], s[1], operation))

    def _pool(self, call: Call) -> LoweredNode | None:
        if call.name not in _POOLS or len(self._sources) != 1:
            return None
        dims, largest = _POOLS[call.name]
        if len(call.outputs[0].shape) != dims + 2:
            return None  # one image, without a batch
        names = ("kernel", "stride", "padding", *(("dilation", "ceil") if largest else ("ceil", "counted")))
        values = dict(zip(names, call.args[1:], strict=False))
        kernel = _many(values["kernel"], dims)
        stride = _many(values.get("stride") or kernel, dims)
        padding = _many(values.get("padding", 0), dims)
        ceil = bool(values.get("ceil", False))
        plain = _many(values.get("dilation", 1), dims) == (1,) * dims and largest >= ceil
        if not plain or call.kwargs or (not values.get("counted", True) and any(padding)):
            return None
        if len(call.args) > 6:
            return None
        return LoweredNode(
            self._sources,
            lambda s, _: Pool(s[0], largest, dhw(kernel, 1), dhw(stride, 1), dhw(padding, 0), ceil),
        )

    def _flatten(self, call: Call) -> LoweredNode | None:
        """Images of one element as rows."""
        if call.name not in ("view", "squeeze") or len(self._sources) != 1:
            return None
        image, rows = call.inputs[0], call.outputs[0]
        rank = len(image.shape)
        if rank not in (3, 4, 5) or image.shape != (*rows.shape, *([1] * (rank - 2))):
            return None
        if call.name == "squeeze" and not _over_space(call, rank):
            return None  # it drops a batch of one, too
        alike = rows.varying == image.varying & {0}
        return LoweredNode(self._sources, lambda s, _: Pointwise(s[0])) if alike else None

    def _mean(self, call: Call) -> LoweredNode | None:
        if call.name != "mean" or len(self._sources) != 1 or len(call.args) not in (2, 3) or call.kwargs:
            return None
        if len(call.inputs[0].shape) < 3 or not _over_space(call, len(call.inputs[0].shape)):
            return None
        return LoweredNode(self._sources, lambda s, _: Mean(s[0]))

    def _concatenate(self, call: Call) -> LoweredNode | None:
        dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
        if call.name != "cat" or dim not in (1, 1 - len(call.outputs[0].shape)):
            return None
        sources = tuple(leaf for leaf in _listed(self.node) if isinstance(leaf, fx.Node))
        if len(sources) != len(call.inputs):
            return None
        return LoweredNode(sources, lambda s, _: Concatenate(s))


def _line(call: Call) -> tuple[float, float] | None:
    """What an operation multiplies its operand by and adds to it; None if it does anything else.

    Of a leaky ReLU, what it does below zero.
    """
    if call.kwargs or len(call.inputs) != 1 or not isinstance(call.args[0], Value):
        return None
    number = (*call.args[1:], 0.01 if call.name == "leaky_relu" else None)[0]
    if call.name == "neg":
        return -1.0, 0.0
    if len(call.args) > 2 or type(number) not in (int, float) or not abs(number) <= _LARGEST:
        return None
    lines = {"add": (1.0, number), "sub": (1.0, -number), "rsub": (-1.0, number), "mul": (number, 0.0)}
    if number:
        lines["div"] = 1 / number, 0.0
    if 0 <= number <= 1:
        lines["leaky_relu"] = number, 0.0
    return lines.get(call.name)


def _over_space(call: Call, rank: int) -> bool:
    """Whether an operation is told to go over all dimensions but batch and channels."""
    told = call.args[1] if len(call.args) > 1 else None
    dims = told if isinstance(told, list | tuple) else () if told is None else (told,)
    return sorted(dim % rank for dim in dims) == list(range(2, rank))


def padding_of(layer: _ConvNd) -> tuple[int, ...] | None:
    """Zeros on both sides; None if there are not as many on either."""
    if layer.padding == "same":
        both = [spread * (size - 1) for spread, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return None if any(pad % 2 for pad in both) else tuple(pad // 2 for pad in both)
    return (0,) * len(layer.kernel_size) if layer.padding == "valid" else tuple(map(int, layer.padding))


def _listed(node: fx.Node) -> Sequence[Any]:
    first = node.args[0] if node.args else node.kwargs.get("tensors", ())
    return first if isinstance(first, list | tuple) else ()


def _hardtanh(call: Call) -> tuple[Any, Any]:
    low, high = (*call.args[1:], *(-1.0, 1.0)[len(call.args) - 1 :])[:2]
    return low, high


def _many(value: Any, dims: int) -> tuple[int, ...]:
    listed = tuple(value) if isinstance(value, list | tuple) else (value,)
    return listed if len(listed) == dims else listed * dims
