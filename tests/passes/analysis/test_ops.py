"""The operation table, a row an operation: its three rules against the operation itself.

Every row inherits the same checks. What is said to be constant is, and has that value; what is said
not to be read can be changed without effect; and the call computes the kept part of its result from
the kept part of its operands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparsefx
from sparsefx.passes.analysis.coupling import find_kept
from sparsefx.passes.analysis.domains.facts import Fact, compact
from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops import OPERATIONS, ConvolutionCall, is_known, operation_of
from sparsefx.passes.analysis.ops.elementwise import Elementwise
from sparsefx.passes.analysis.ops.movement import dim_argument
from sparsefx.passes.analysis.propagate import forward_facts, live_elements
from sparsefx.passes.graph.program import Call, Program, Value
from sparsefx.passes.graph.record import record


@dataclass(frozen=True)
class Row:
    """An operation on a value whose channels are partly constant, and the shape it is given."""

    name: str
    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...] = (2, 6, 4, 4)


def _weight(*shape: int) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[:2] = 0  # empty rows
    weight[:, :1] = 0  # an empty column
    return weight


_CONV, _DEPTHWISE, _GROUPED = _weight(4, 6, 3, 3), _weight(12, 1, 3, 3), _weight(6, 3, 3, 3)
_TRANSPOSED, _LINEAR, _VECTOR = _weight(6, 4, 2, 2), _weight(5, 4), _weight(6, 1).flatten()

ROWS = [
    Row("relu", torch.relu),
    Row("sigmoid", torch.sigmoid),
    Row("relu_", lambda x: x.clone().relu_()),
    Row("hardswish", F.hardswish),
    Row("gelu", F.gelu),
    Row("prelu", lambda x: F.prelu(x, _VECTOR)),
    Row("add a scalar", lambda x: x + 2),
    Row("add itself", lambda x: x + x.flip(3)),
    Row("add broadcast", lambda x: x + _VECTOR.view(6, 1, 1)),
    Row("multiply", lambda x: x * _VECTOR.view(6, 1, 1)),
    Row("multiply by itself", lambda x: x * x),
    Row("gate", lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    Row("divide", lambda x: x / 3),
    Row("where", lambda x: torch.where(x > 0, x, -x)),
    Row("view", lambda x: x.view(2, 3, 2, 16)),
    Row("flatten", lambda x: x.flatten(1)),
    Row("permute", lambda x: x.permute(0, 2, 3, 1)),
    Row("transpose", lambda x: x.transpose(1, 3)),
    Row("squeeze", lambda x: x.unsqueeze(2).squeeze(2)),
    Row("expand", lambda x: x.unsqueeze(0).expand(3, -1, -1, -1, -1)),
    Row("slice", lambda x: x[:, 1:5:2]),
    Row("select", lambda x: x[:, 3]),
    Row("split", lambda x: _swap_halves(x)),
    Row("chunk", lambda x: x.chunk(3, 1)[1]),
    Row("unbind", lambda x: x.unbind(1)[2]),
    Row("flip", lambda x: x.flip(1)),
    Row("roll", lambda x: x.roll(2, 1)),
    Row("windows", lambda x: x.unfold(2, 3, 1)),
    Row("patches", lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2)),
    Row("windows of channels", lambda x: x.unfold(1, 4, 2)),
    Row("repeat", lambda x: x.repeat(1, 2, 1, 1)),
    Row("pixel_shuffle", lambda x: F.pixel_shuffle(torch.cat([x, x], 1), 2)),
    Row("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2)),
    Row("stack", lambda x: torch.stack([x, x * 2], 1)),
    Row("cat", lambda x: torch.cat([x, x.relu()], 1)),
    Row("cat along a map", lambda x: torch.cat([x, x.relu()], 3)),
    Row("pad", lambda x: F.pad(x, (1, 1, 0, 2))),
    Row("pad with a value", lambda x: F.pad(x, (1, 1), value=1.5)),
    Row("pad channels", lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
    Row("reflect", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    Row("replicate", lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate")),
    Row("convolution", lambda x: F.conv2d(x, _CONV)),
    Row("padded convolution", lambda x: F.conv2d(x, _CONV, padding=1)),
    Row("strided convolution", lambda x: F.conv2d(x, _CONV, _VECTOR[:4], stride=2, dilation=1, padding=1)),
    Row("depthwise convolution", lambda x: F.conv2d(x, _DEPTHWISE, padding=1, groups=6)),
    Row("grouped convolution", lambda x: F.conv2d(x, _GROUPED, groups=2)),
    Row("grouped transposed convolution", lambda x: F.conv_transpose2d(x, _weight(6, 3, 2, 2), groups=3)),
    Row("transposed convolution", lambda x: F.conv_transpose2d(x, _TRANSPOSED, stride=2)),
    Row("linear", lambda x: F.linear(x, _LINEAR, _LINEAR[:, 1])),
    Row("matmul", lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2)),
    Row("batch_norm", lambda x: F.batch_norm(x, _VECTOR + 3, _VECTOR.abs() + 1, _VECTOR + 2, _VECTOR)),
    Row("batch_norm of the batch", lambda x: F.batch_norm(x, None, None, _VECTOR, None, training=True)),
    Row("layer_norm", lambda x: F.layer_norm(x, (4, 4))),
    Row("scaled group_norm", lambda x: F.group_norm(x, 3, _VECTOR, _VECTOR + 1)),
    Row("scaled layer_norm", lambda x: F.layer_norm(x, (4,), _LINEAR[2], _LINEAR[3])),
    Row("scaled rms_norm", lambda x: F.rms_norm(x, (4,), _LINEAR[2])),
    Row("group_norm", lambda x: F.group_norm(x, 3)),
    Row("group_norm of single channels", lambda x: F.group_norm(x, 6, _VECTOR, _VECTOR + 1)),
    Row("instance_norm", F.instance_norm),
    Row("scaled instance_norm", lambda x: F.instance_norm(x, None, None, _VECTOR, _VECTOR + 1)),
    Row(
        "instance_norm of running statistics",
        lambda x: F.instance_norm(x, _VECTOR + 3, _VECTOR.abs() + 1, _VECTOR + 2, _VECTOR, False),
    ),
    Row("softmax", lambda x: x.softmax(1)),
    Row("log_softmax", lambda x: x.log_softmax(-1)),
    Row("mean", lambda x: x.mean((2, 3))),
    Row("mean over channels", lambda x: x.mean(1, keepdim=True)),
    Row("sum", lambda x: x.sum(2)),
    Row("amax", lambda x: x.amax((2, 3), keepdim=True)),
    Row("max_pool", lambda x: F.max_pool2d(x, 3, 2, 1)),
    Row("avg_pool", lambda x: F.avg_pool2d(x, 2)),
    Row("padded avg_pool", lambda x: F.avg_pool2d(x, 3, 1, 1)),
    Row("avg_pool that ignores padding", lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    Row("adaptive pool", lambda x: F.adaptive_avg_pool2d(x, 3)),
    Row("adaptive max pool", lambda x: F.adaptive_max_pool2d(x, 2)),
    Row("upsample", lambda x: F.interpolate(x, scale_factor=2)),
    Row("bilinear", lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
    Row("attention", lambda x: F.scaled_dot_product_attention(x, x, x)),
    Row("attention between channels", lambda x: _attend(x.transpose(1, 3))),
    Row("masked attention", lambda x: _attend(x.transpose(1, 3), _MASK)),
    Row("causal attention", lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    Row("attention of repeated heads", lambda x: _attend(x, None, x[:, :2])),
    Row("index", lambda x: x[:, :, _POSITIONS]),
    Row("index channels", lambda x: x[:, _POSITIONS]),
    Row(
        "index apart",
        lambda x: x[:, :, _POSITIONS].transpose(1, 2)[:, _POSITIONS % 3, :, _POSITIONS].movedim(1, 0),
    ),
    Row("index_select", lambda x: x.index_select(2, _POSITIONS)),
    Row("embedding", lambda x: F.embedding((x[:, :, 0, 0] > 0).long(), _LINEAR)),
    Row("zeros_like", lambda x: torch.zeros_like(x) + x.flip(2)),
    Row("cumsum", lambda x: x.cumsum(1)),
    Row("cumsum along a map", lambda x: x.cumsum(3)),
    Row("sort", lambda x: x.sort(2)[0]),
    Row("variance", lambda x: torch.var_mean(x, (2, 3))[0]),
    Row("norm", lambda x: torch.linalg.vector_norm(x, dim=2)),
    Row("logsumexp", lambda x: x.logsumexp(3)),
    Row("rms_norm", lambda x: F.rms_norm(x, (4,))),
    Row("bicubic", lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic")),
    Row("einsum", lambda x: torch.einsum("bchw,oc->bohw", x, _LINEAR.T[:, [0, 1, 2, 3, 4, 4]])),
    Row("amin", lambda x: x.amin(2)),
    Row("max along a map", lambda x: x.max(3)[0]),
    Row("min over channels", lambda x: x * x.min(1, keepdim=True)[0]),
    Row("median", lambda x: x.median(2)[0]),
    Row("argmax", lambda x: x.argmax(2, keepdim=True) + x),
    Row("argmin", lambda x: x * x.argmin(1, keepdim=True)),
    Row("any", lambda x: (x > 0).any(2) * 1.0),
    Row("all", lambda x: (x > 0).all(3) * 1.0),
    Row("prod", lambda x: x.prod(2)),
    Row("cumprod", lambda x: x.cumprod(1)),
    Row("logcumsumexp", lambda x: x.logcumsumexp(2)),
    Row("standard deviation", lambda x: x.std((2, 3))),
    Row("var", lambda x: x.var(3)),
    Row("std_mean", lambda x: torch.std_mean(x, 2)[1]),
    Row("ones_like", lambda x: torch.ones_like(x) * x.flip(2)),
    Row("full_like", lambda x: torch.full_like(x, 2) + x.flip(1)),
    Row("channel_shuffle", lambda x: F.channel_shuffle(x, 3)),
    Row("addmm", lambda x: torch.addmm(_VECTOR[:5], x, _LINEAR.T[[0, 1, 2, 3, 3, 2]]), (4, 6)),
    Row("baddbmm", lambda x: torch.baddbmm(x, x, x[:, :4]), (2, 6, 4)),
    Row("scaled addmm", lambda x: torch.addmm(_VECTOR[:5], x, _LINEAR.T[[0, 1, 2, 3, 3, 2]], beta=2), (4, 6)),
    Row("grid_sample", lambda x: F.grid_sample(x, _GRID, align_corners=False)),
    Row("antialiased", lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True)),
    Row("antialiased bicubic", lambda x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True)),
    Row("nearest exact", lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    Row("pools of 3 dimensions", lambda x: F.max_pool3d(x, 2) + F.avg_pool3d(x, 2), (2, 6, 4, 4, 2)),
    Row(
        "adaptive pools of 3 dimensions",
        lambda x: F.adaptive_avg_pool3d(x, 2) + F.adaptive_max_pool3d(x, 2),
        (2, 6, 4, 4, 2),
    ),
    Row("trilinear", lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear"), (2, 6, 2, 2, 2)),
    Row("nearest of 3 dimensions", lambda x: F.interpolate(x, scale_factor=2), (2, 6, 2, 2, 2)),
    Row("linear upsampling", lambda x: F.interpolate(x, scale_factor=2.0, mode="linear"), (2, 6, 4)),
    Row("nearest of 1 dimension", lambda x: F.interpolate(x, scale_factor=2), (2, 6, 4)),
    Row("reflect 1 dimension", lambda x: F.pad(x, (1, 2), mode="reflect"), (2, 6, 4)),
    Row("replicate 3 dimensions", lambda x: F.pad(x, (1, 0, 0, 0, 0, 1), mode="replicate"), (2, 6, 2, 2, 2)),
    Row("unknown", lambda x: torch.fft.fft(x, dim=1).real),
    Row("written through a view", lambda x: _write_through_view(x)),
]


_POSITIONS = torch.tensor([2, 0, 3])
_GRID = torch.rand(2, 3, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
_MASK = torch.eye(4, dtype=torch.bool)


def _attend(x: Tensor, mask: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
    keys = x if keys is None else keys
    return F.scaled_dot_product_attention(x, keys, keys, mask, enable_gqa=keys is not x).transpose(1, 3)


def _swap_halves(x: Tensor) -> Tensor:
    one, other = x.split([2, 4], 1)
    return torch.cat([other, one], 1)


def _write_through_view(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :2].add_(1)
    return y


class Probe(nn.Module):
    """The operation on a value of which some channels are constant: 0, and 1.5."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.function = row.function
        shape = (1, row.shape[1], *(1,) * (len(row.shape) - 2))
        gain, shift = torch.ones(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        gain[:, 1], gain[:, 4], shift[:, 4] = 0, 0, 1.5
        self.register_buffer("gain", gain)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.gain + self.shift)


def graph_module(row: Row) -> fx.GraphModule:
    """A traced probe of the operation."""
    probe = Probe(row)
    return fx.GraphModule(probe, fx.Tracer().trace(probe))


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def image(row: Row, seed: int) -> Tensor:
    return torch.randn(row.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_constants_are_constant_and_have_the_value(row: Row) -> None:
    module = graph_module(row)
    program = record(module, [(image(row, 0),)])
    known = forward_facts(program)[program.outputs[0]]
    for seed in (1, 2):
        result = module(image(row, seed))
        fixed = ~known.varies.expand(result.shape)
        torch.testing.assert_close(
            result[fixed], known.value.expand(result.shape)[fixed], rtol=1e-12, atol=1e-12
        )


def test_what_is_not_read_has_no_effect(row: Row) -> None:
    """Elements of the input that are not live can be anything."""
    module = graph_module(row)
    x = image(row, 3)
    program = record(module, [(x,)])
    live = live_elements(program, forward_facts(program))[program.inputs[0]].expand(x.shape)
    changed = torch.where(live, x, x + 1e3)
    torch.testing.assert_close(module(changed), module(x), rtol=1e-12, atol=1e-12)


def test_channels_that_nobody_reads_are_not_live() -> None:
    """The constant channels of the probe do not read the input, so the analysis is not trivially safe."""
    row = next(row for row in ROWS if row.name == "relu")
    program = record(graph_module(row), [(image(row, 0),)])
    live = live_elements(program, forward_facts(program))[program.inputs[0]]
    assert live.expand(row.shape)[0, :, 0, 0].tolist() == [True, False, True, True, False, True]


def test_which_operations_the_table_knows(row: Row) -> None:
    program = record(graph_module(row), [(image(row, 0),)])
    unknown = {"unknown", "written through a view"}
    assert all(is_known(call) for call in program.calls if call.inputs) == (row.name not in unknown)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_what_is_kept_is_computed_from_what_is_kept(row: Row, seed: int) -> None:
    """Some channels are wanted: cut to what the couplings keep, every call still computes them."""
    module, x = graph_module(row), image(row, seed)
    program = record(module, [(x,)])
    live = live_for_some_channels(program, seed)
    source = program.inputs.pop()  # neither inputs nor outputs are pinned here: let all go that can
    program.outputs.clear()
    kept = find_kept(program, live)
    whole = {source: x, **{value: value.constant for value in program.constants}}
    parts = {value: cut(kept, value, tensor) for value, tensor in whole.items()}
    for call in program.calls:
        whole.update(zip(call.outputs, call.run([whole[value] for value in call.inputs]), strict=False))
        parts.update(zip(call.outputs, run_cut(call, kept, parts), strict=False))
        for output in call.outputs if call.inputs and not call.aliases else []:
            needed = cut(kept, output, live[output].expand(output.shape))
            expected = cut(kept, output, whole[output])
            assert parts[output].shape == expected.shape
            torch.testing.assert_close(parts[output][needed], expected[needed], rtol=1e-12, atol=1e-12)


def live_for_some_channels(program: Program, seed: int) -> dict[Value, Tensor]:
    """What is read to compute a random half of the result's channels."""
    facts = forward_facts(program)
    (output,) = program.outputs
    shape = [1, output.shape[1], *(1,) * (len(output.shape) - 2)]
    live = {value: torch.zeros_like(facts[value].varies) for value in facts}
    live[output] = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    for call in reversed(program.calls):
        reads = operation_of(call).backward(call, facts, [live[value] for value in call.outputs])
        for value, read in zip(call.inputs, reads, strict=True):
            live[value] = live[value] | read
    return live


def cut(kept: KeepSets, value: Value, tensor: Tensor) -> Tensor:
    return kept.cut(value, tensor)


def run_cut(call: Call, kept: KeepSets, parts: dict[Value, Tensor]) -> list[Tensor]:
    """Run a call on the parts of its operands, its literal sizes and groups rewritten."""
    operands = [parts[value] for value in call.inputs]
    if call.name in ("view", "_unsafe_view"):
        return [operands[0].reshape(kept.shape(call.outputs[0]))]
    if call.name == "expand":
        return [operands[0].expand(kept.shape(call.outputs[0]))]
    if call.name == "native_group_norm":
        channels, groups = operands[0].shape[1], call.args[4] // call.args[6]
        call = dataclasses.replace(
            call, args=(*call.args[:4], channels, call.args[5], channels // groups, 1e-5)
        )
    if call.name in ("slice", "select", "split", "split_with_sizes"):
        return run_cut_positions(call, kept, operands[0])
    if call.name == "convolution" and call.args[-1] > 1:
        conv = ConvolutionCall.of(call)
        side = (conv.weight, 0) if conv.transposed else (call.outputs[0], 1)
        groups = int(kept.of(*side).view(conv.groups, -1).any(1).sum())
        call = dataclasses.replace(call, args=(*call.args[:-1], groups))
    return call.run(operands)


def run_cut_positions(call: Call, kept: KeepSets, operand: Tensor) -> list[Tensor]:
    """A slice, selection or split of what is left: positions count what is kept before them."""
    (dim,) = dim_argument(call)
    before = kept.of(call.inputs[0], dim)
    sizes = [kept.shape(output)[dim] for output in call.outputs if len(output.shape) == operand.dim()]
    if call.name.startswith("split"):
        return list(operand.split(sizes, dim))
    if call.name == "select":
        return [operand.select(dim, int(before[: call.args[2]].sum()))]
    positions = range(len(before))[slice(*call.args[2:])]
    numbers = [int(before[:position].sum()) for position in positions if before[position]]
    return [operand.index_select(dim, torch.tensor(numbers, dtype=torch.long))]


@torch.library.custom_op("sparsefx_tests::smooth_relu", mutates_args=())
def smooth_relu(x: Tensor) -> Tensor:
    """An operation that torch knows nothing of."""
    return (x + (x * x + 1).sqrt()) / 2


def test_an_operation_of_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 8), nn.Linear(8, 2)
    last.weight.data[:, ::2] = 0

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(smooth_relu(self.first(x)))

    model = Net().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert compact.first.out_features == 8
    assert "sparsefx_tests::smooth_relu at smooth_relu_default keeps 4 dead channels" in str(compact.report)
    monkeypatch.setitem(OPERATIONS, "sparsefx_tests::smooth_relu", Elementwise())
    compact = sparsefx.export(model, (x,))
    assert compact.first.out_features == 4
    torch.testing.assert_close(compact(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_fact_keeps_one_index_of_a_dimension_whose_indices_are_alike() -> None:
    value = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    nothing = torch.zeros(1, 1, dtype=torch.bool)
    known = compact(Fact(nothing, value, ~nothing))
    assert [tuple(part.shape) for part in (known.varies, known.value, known.fixed)] == [
        (1, 1),
        (1, 2),
        (1, 1),
    ]
    value[1, 1] = 3
    assert compact(Fact(nothing, value, ~nothing)).value is value
