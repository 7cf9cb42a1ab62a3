"""Models that once came out of an export with other outputs, or not at all."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from networks import relative_difference
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import sparsefx
from sparsefx.passes.rewrites.align_head_dims import AlignHeadDims


class Traps(nn.Module):
    """Layers a (6 -> 16), b (16 -> 16), c (16 -> 3), half of a's rows empty, around one idiom."""

    def __init__(self, idiom: Callable[[Traps, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(6, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 3),
            nn.Linear(6, 3),
        )
        self.positions = nn.Parameter(torch.randn(1, 32, 16))
        self.register_buffer("upper", torch.ones(32, 32).triu(1))
        self.register_buffer("calls", torch.zeros(()))
        self.w = nn.Parameter(torch.randn(16, 6))
        self.linear_layer = nn.Linear(16, 16)
        self.idiom = idiom
        with torch.no_grad():
            self.a.weight[::2] = 0
            self.w[::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.idiom(self, x)


def parts_of_the_batch(m: Traps, x: Tensor) -> Tensor:
    return torch.cat([m.d(x)[:2], m.c(F.relu(m.b(F.relu(m.a(x)))))[2:]])


def positional(m: Traps, x: Tensor) -> Tensor:
    return m.c(F.relu(m.a(x) + m.positions[:, : x.shape[1]]))


def masked(m: Traps, x: Tensor) -> Tensor:
    steps = x.shape[1]
    return x[..., :3] + m.c(m.upper[:steps, :steps] @ F.relu(m.a(x)))


def empty_at_the_example(m: Traps, x: Tensor) -> Tensor:
    return torch.cat([m.d(x)[:, :5], m.c(F.relu(m.a(x)))[:, 5:]], 1)


def scaled_by_length(m: Traps, x: Tensor) -> Tensor:
    return m.c(F.relu(m.a(x)) * x.shape[1])


def reduced_to_a_scalar(m: Traps, x: Tensor) -> Tensor:
    h = F.relu(m.a(x))
    return m.c(h / (1 + h.sum()))


def written_input(m: Traps, x: Tensor) -> Tensor:
    return m.c(F.relu(m.a(x.sub_(0.5).div_(2))))


def clashing_name(m: Traps, x: Tensor) -> Tensor:
    return m.c(m.linear_layer(F.relu(F.linear(x, m.w))))


def number_of_elements(m: Traps, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.c(h.view(h.shape[0], h.shape[1:].numel()).view(h.shape))


def reshaped_by_keyword(m: Traps, x: Tensor) -> Tensor:
    flat = torch.reshape(m.a(x), shape=(-1, 16))
    return m.c(flat.reshape(x.shape[0], x.shape[1], 16))


IDIOMS = [
    parts_of_the_batch, positional, masked, empty_at_the_example, scaled_by_length, reduced_to_a_scalar,
    written_input, clashing_name, number_of_elements, reshaped_by_keyword,
]  # fmt: skip


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.__name__)
def test_other_sizes_than_the_example(idiom: Callable[[Traps, Tensor], Tensor], length: int) -> None:
    torch.manual_seed(0)
    model = Traps(idiom).double().eval()
    example = torch.randn(4, length, 6, dtype=torch.float64)
    before = example.clone()
    compact = sparsefx.export(model, (example,))
    assert torch.equal(example, before)
    for batch, size in [(4, length), (5, 9)]:
        x = torch.randn(batch, size, 6, dtype=torch.float64)
        assert relative_difference(compact(x.clone()), model(x.clone())) <= 1e-11


def test_padding_that_depends_on_the_size() -> None:
    class Skip(nn.Module):
        """A U-Net's way to bring an upsampled map to the size of its skip connection."""

        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 8, 2, stride=2)
            self.skip, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            e, u = self.skip(x), F.relu(self.up(F.relu(self.down(x))))
            dy, dx = e.size(2) - u.size(2), e.size(3) - u.size(3)
            return self.head(torch.cat([e, F.pad(u, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])], 1))

    torch.manual_seed(0)
    model = Skip().double().eval()
    model.up.weight.data[:, :4] = 0
    compact = sparsefx.export(model, (torch.randn(1, 3, 8, 8, dtype=torch.float64),))
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_view_that_mixes_channels_with_positions_at_other_sizes() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 16, 1), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(h.view(h.shape[0], -1, 16))

    torch.manual_seed(0)
    model = Mixing().double()
    model.last.weight.data[:, ::2] = 0
    compact = sparsefx.export(model, (torch.randn(1, 3, 1, 1, dtype=torch.float64),))
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


class Same(nn.Conv2d):
    """A convolution that pads its input itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class Standardised(nn.Conv2d):
    """A convolution with another weight than its parameter."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True) + 0.1, bias)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda _module, _args, result: result * 2 + 1)
    return layer


LAYERS = {
    "padding": lambda: Same(8, 6, 3, stride=2),
    "standardised": lambda: Standardised(8, 6, 3),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(8, 6, 3)),
    "hooked": lambda: hooked(nn.Conv2d(8, 6, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rows", [True, False])
def test_layers_with_code_of_their_own_are_left_alone(kind: str, rows: bool) -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 3, 1)
    model = (
        nn.Sequential(first, nn.Sigmoid(), LAYERS[kind](), nn.BatchNorm2d(6), nn.ReLU(), last).double().eval()
    )
    model[3].running_mean.normal_()
    if rows:
        first.weight.data[::2] = 0
    last.weight.data[:, ::2] = 0
    compact = sparsefx.export(model, (torch.randn(2, 3, 10, 10, dtype=torch.float64),))
    x = torch.randn(1, 3, 11, 13, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(compact(x), model(x)) <= 1e-11


def test_hooks_of_the_model_itself() -> None:
    model = hooked(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double())
    model[0].weight.data[:3] = 0
    x = torch.randn(3, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x), model(x)) <= 1e-11
    model.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    with pytest.warns(
        UserWarning,
        match="returned whole, without its masks, because its forward stays Python: a forward pre-hook",
    ):
        compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_buffer_that_counts_calls_counts_on() -> None:
    def counted(m: Traps, x: Tensor) -> Tensor:
        m.calls.add_(1)
        return m.c(F.relu(m.a(x))) * m.calls

    torch.manual_seed(0)
    model = Traps(counted).double().eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    compact, reference = sparsefx.export(model, (x,)), copy.deepcopy(model)
    for _ in range(3):
        assert relative_difference(compact(x), reference(x)) <= 1e-11


def test_an_average_pool_with_a_divisor_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(6, 2, 1)
    ).double()
    model[0].weight.data[::2] = 0
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert relative_difference(sparsefx.export(model, (x,))(x), model(x)) <= 1e-11


def test_a_convolution_without_a_batch_and_its_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6)).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    assert relative_difference(sparsefx.export(model, (x,))(x), model(x)) <= 1e-11


def test_complex_layers_are_left_alone() -> None:
    model = nn.Sequential(*(nn.Linear(*shape, dtype=torch.complex128) for shape in ((4, 6), (6, 2))))
    model[0].weight.data[:3] = 0
    x = torch.randn(2, 4, dtype=torch.complex128)
    assert torch.allclose(sparsefx.export(model, (x,))(x), model(x))


def exported(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """An export in float64, checked on its example."""
    model = model.double().eval()
    compact = sparsefx.export(model, inputs)
    assert relative_difference(compact(*inputs), model(*inputs)) <= 1e-11
    return compact


def test_attention_of_repeated_heads_whose_values_are_constant() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = nn.Linear(6, 16), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q(x), self.v(x)))
            return F.scaled_dot_product_attention(q, v, v, enable_gqa=True)[:, :, ::2]

    torch.manual_seed(0)
    model = Repeated()
    model.v.weight.data[[0, 4]] = 0
    exported(model, torch.randn(2, 5, 6, dtype=torch.float64))


def test_a_part_that_takes_a_tensor_after_an_argument_with_a_default() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, negate: bool = False, mask: Tensor | None = None) -> Tensor:
            return self.last(F.relu(self.first(x))) * mask

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Masked()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x, mask=x.sigmoid()) if x.sum() < 1e6 else x

    torch.manual_seed(0)
    model = Branching()
    model.part.first.weight.data[::2] = 0
    with pytest.warns(UserWarning, match="export: one part of it was compiled, because"):
        compact = exported(model, torch.randn(2, 6, dtype=torch.float64))
    assert compact.part.first.out_features == 3


class Heads(nn.Module):
    """Queries, keys and values of two heads of width 3, some dimensions of which do nothing."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.attend = attend
        with torch.no_grad():
            for layer in (self.q, self.k):
                layer.weight[[0, 4]] = 0
                layer.bias[[0, 4]] = 0
            self.out.weight[:, [1, 3]] = 0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (2, 3)) for layer in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).flatten(2))


def between_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def between_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.permute(0, 2, 3, 1) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2)


def keys_as_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, k).transpose(1, 2)


def queries_as_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, q).transpose(1, 2)


ATTENTIONS = [between_heads, between_channels, keys_as_values, queries_as_values]


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("attend", ATTENTIONS, ids=lambda attend: attend.__name__)
def test_attention_whose_dimensions_only_look_like_heads(attend: Callable[..., Tensor], length: int) -> None:
    torch.manual_seed(0)
    model = Heads(attend)
    compact = exported(model, torch.randn(2, length, 6, dtype=torch.float64))
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_view_that_takes_channels_and_positions_together_at_other_sizes() -> None:
    class Fused(nn.Module):
        """Positions are split off right at 4 of them; at others they mix with the channels."""

        def __init__(self, parts: bool) -> None:
            super().__init__()
            self.qkv, self.out, self.parts = nn.Linear(4, 12), nn.Linear(4, 2), parts

        def forward(self, x: Tensor) -> Tensor:
            h = self.qkv(x).view(x.shape[0], 4, 3, 2, -1)
            q, k, v = h.permute(2, 0, 3, 1, 4) if self.parts else h.permute(2, 0, 3, 1, 4) * 2
            return self.out((q * k.sigmoid() + v).transpose(1, 2).reshape(x.shape))

    for parts in (True, False):
        torch.manual_seed(0)
        model = Fused(parts)
        model.qkv.weight.data[:6] = 0
        model.out.weight.data[:, 1:] = 0
        compact = exported(model, torch.randn(2, 4, 4, dtype=torch.float64))
        for length in (4, 6, 8):
            x = torch.randn(3, length, 4, dtype=torch.float64)
            assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_weight_read_as_a_layer_and_as_a_tensor_stays_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.w).relu(), self.w.t())

    torch.manual_seed(0)
    compact = exported(Tied(), torch.randn(2, 4, dtype=torch.float64))
    assert [parameter.shape for parameter in compact.parameters()] == [(5, 4)]


@pytest.mark.filterwarnings("error")
def test_a_prelu_of_one_slope_a_channel_on_what_is_alike_in_all() -> None:
    exported(nn.Sequential(nn.PReLU(3), nn.Conv2d(3, 2, 1)), torch.randn(1, 3, 4, 4, dtype=torch.float64))


def test_a_stride_over_a_single_position() -> None:
    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x[:, ::2]
            return x.view(x.shape[0], x.shape[1], 2, 2).sum(-1)

    compact = exported(Strided(), torch.randn(2, 1, 4, dtype=torch.float64))
    assert compact(torch.randn(2, 3, 4)).shape == (2, 2, 2)


@pytest.mark.filterwarnings("ignore:export")
def test_a_split_into_another_number_of_parts_at_other_sizes() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.first(x)).split(2, 1)[0])

    torch.manual_seed(0)
    model = Split()
    model.first.weight.data[::2] = 0
    compact = exported(model, torch.randn(2, 4, 4, dtype=torch.float64))
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


@pytest.mark.parametrize("second", [lambda x: torch.std_mean(x, 1)[1], lambda x: x.max(1)[1] + 0.5])
def test_only_the_second_result_of_a_reduction_is_read(second: Callable[[Tensor], Tensor]) -> None:
    class Reduced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return second(self.last(F.relu(self.first(x))))

    torch.manual_seed(0)
    model = Reduced()
    model.first.weight.data[::2] = 0
    exported(model, torch.randn(4, 6, dtype=torch.float64))


def test_a_part_that_is_handed_a_list_which_grows_afterwards() -> None:
    class Last(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))
            nn.init.zeros_(self.layers[0].weight[::2].detach())

        def forward(self, values: list[Tensor]) -> Tensor:
            return self.layers(values[-1])

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Last(6, 4), Last(4, 3)])

        def forward(self, x: Tensor) -> Tensor:
            values = [x if x.sum() < 1e6 else -x]
            for part in self.parts:
                values.append(part(values))
            return values[-1]

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="export: 2 parts of it were compiled, each for itself, because"):
        exported(Growing(), torch.randn(2, 6, dtype=torch.float64))


def test_causal_attention_of_queries_of_which_the_first_is_not_read() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            q, k = (layer(x).view(x.shape[0], 1, 2, 3) for layer in (self.q, self.k))
            return F.scaled_dot_product_attention(q, k, k, is_causal=True)[:, :, 1]

    torch.manual_seed(0)
    exported(Causal(), torch.randn(4, 6, dtype=torch.float64))


class Conv1D(nn.Module):
    """GPT-2's linear layer, with weights (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs)),
            nn.Parameter(torch.randn(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.bias.shape[0])
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


def test_constants_behind_an_addmm_are_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(4, 8), nn.GELU(), Conv1D(8, 3)).double()
    model[0].weight.data[:, ::2] = 0
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x[:1, :3]), model(x[:1, :3])) <= 1e-11
    assert sum(parameter.numel() for parameter in compact.parameters()) == 4 * 4 + 4 + 4 * 3 + 3


def test_constants_that_all_calls_of_a_layer_agree_on_are_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = x + self.down(F.gelu(self.up(x)))
            return x

    torch.manual_seed(0)
    model = Twice().double()
    model.up.weight.data[::2] = 0
    x = torch.randn(3, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x), model(x)) <= 1e-11
    assert compact.get_submodule("up").out_features == 4


def test_constants_that_differ_from_call_to_call_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.shared = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.first(x)) - 2 * self.shared(self.second(x))

    torch.manual_seed(0)
    model = Twice().double()
    model.first.weight.data[:3] = 0
    model.second.weight.data[1:5] = 0
    model.second.bias.data[1] = model.first.bias.data[1]
    x = torch.randn(3, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x), model(x)) <= 1e-11
    assert compact.get_submodule("shared").in_features == 5  # the one constant that both share is folded


@pytest.mark.parametrize("holds", [True, False])
def test_a_branch_on_sizes_above_one(holds: bool) -> None:
    """``if steps > 1`` is taken for granted where one step gives the same either way."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.layer(x))
            if x.shape[1] > 1:
                y = y - y.mean(1, keepdim=True) + (y.mean(1, keepdim=True) if holds else 1)
            return self.last(y)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), Branches()).double()
    model[1].last.weight.data[:, ::2] = 0
    compact = sparsefx.export(model, (torch.randn(2, 5, 4, dtype=torch.float64),))
    for steps in (1, 2, 7):
        x = torch.randn(3, steps, 4, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11
    assert bool(compact.report.opaque) != holds


def test_a_proxy_is_no_tensor_to_compiled_code() -> None:
    """``torch.pow(x, 3.0)`` asks in C++ whether x is a tensor; a proxy that said yes crashed the process."""

    class Cubes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            assert isinstance(y, Tensor)
            return torch.pow(y, 3.0) + torch.pow(2.0, y)

    model = Cubes().double()
    x = torch.randn(2, 4, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    assert not compact.report.opaque
    assert relative_difference(compact(x), model(x)) <= 1e-11


@dataclass
class Output:
    value: Tensor
    pooled: Tensor


def test_a_result_whose_attribute_is_set_afterwards() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Output:
            y = self.down(F.relu(self.up(x)))
            return Output(y, y.mean(1) if x.sum() < 1e9 else y)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = Inner(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            output = self.inner(x)
            output.pooled = self.last(output.pooled)
            return output.value, output.pooled

    torch.manual_seed(0)
    model = Outer().double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="it sets the attribute 'pooled' of something computed"):
        compact = sparsefx.export(model, (x,))
    for one, other in zip(compact(x), model(x), strict=True):
        assert relative_difference(one, other) <= 1e-11


def test_items_set_in_forward() -> None:
    class Sets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            y[:, 1:3] = y[:, 1:3] * 2
            return self.down(y)

    torch.manual_seed(0)
    model = Sets().double()
    model.up.weight.data[::2] = 0
    compact = sparsefx.export(model, (torch.randn(2, 4, dtype=torch.float64),))
    assert not compact.report.opaque
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(compact(x), model(x)) <= 1e-11


class Tokens(nn.Module):
    """Layers h (6 -> 16) and o (16 -> 5), half of h's rows and two columns of o empty, around an idiom."""

    def __init__(self, idiom: Callable[..., Any]) -> None:
        super().__init__()
        self.h, self.o, self.idiom = nn.Linear(6, 16), nn.Linear(16, 5), idiom
        self.positions = nn.Parameter(torch.randn(8, 6))
        with torch.no_grad():
            self.h.weight[::2] = 0
            self.o.weight[:, [1, 3]] = 0

    def forward(self, *args: Any) -> Any:
        return self.idiom(self, *args)


SIZE_IDIOMS: dict[str, tuple[Callable[..., Any], tuple[int, int], list[tuple[int, int]]]] = {
    "micro-batches": (
        lambda m, x: torch.cat([m.o(m.h(part)) for part in x.split(4)]), (2, 7), [(5, 7), (9, 7)]
    ),
    "windows": (lambda m, x: torch.cat([m.o(m.h(p)) for p in x.split(16, 1)], 1), (2, 7), [(3, 64)]),
    "number of windows": (lambda m, x: m.o(m.h(x)) * len(x.split(16, 1)), (2, 7), [(3, 64)]),
    "halves of the batch": (
        lambda m, x: torch.cat([m.o(m.h(part)) for part in x.chunk(2)]), (2, 7), [(1, 7)]
    ),
    "longest example": (lambda m, x: m.o(m.h(x + m.positions[: x.shape[1]])), (2, 8), [(1, 1), (3, 5)]),
    "fourfold batch": (lambda m, x: m.o(m.h(x.view(x.shape[0] // 4, 4, -1, 6).mean(1))), (4, 7), [(8, 7)]),
    "count of positives": (lambda m, x: m.o(m.h(x)) * ((x > 0).sum() - 1), (2, 7), [(3, 5)]),
    "positions": (lambda m, x: m.o(m.h(x)) * (x > 0).cumsum(1).sum(2, keepdim=True).sub(1), (2, 7), [(3, 5)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZE_IDIOMS)
@pytest.mark.filterwarnings("ignore:export")
def test_sizes_that_decide(name: str) -> None:
    idiom, shape, others = SIZE_IDIOMS[name]
    torch.manual_seed(0)
    model = Tokens(idiom).double().eval()
    compact = sparsefx.export(model, (torch.randn(*shape, 6, dtype=torch.float64),))
    for size in (shape, *others):
        x = torch.randn(*size, 6, dtype=torch.float64)
        with torch.no_grad():
            assert relative_difference(compact(x), model(x)) <= 1e-11


def test_two_inputs_whose_lengths_go_together() -> None:
    torch.manual_seed(0)
    model = Tokens(lambda m, x, z: m.o(m.h(x)[:, ::2] + m.h(z) * z.shape[1])).double().eval()
    compact = sparsefx.export(model, tuple(torch.randn(2, n, 6, dtype=torch.float64) for n in (8, 4)))
    x, z = (torch.randn(3, n, 6, dtype=torch.float64) for n in (20, 10))
    with torch.no_grad():
        assert relative_difference(compact(x, z), model(x, z)) <= 1e-11


def test_a_dataclass_of_results() -> None:
    torch.manual_seed(0)
    model = Tokens(lambda m, x: {"out": Output(m.o(m.h(x)), m.h(x))}).double().eval()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    compact = sparsefx.export(model, (x,))
    with torch.no_grad():
        one, other = compact(x)["out"], model(x)["out"]
    assert relative_difference(one.value, other.value) <= 1e-11
    assert relative_difference(one.pooled, other.pooled) <= 1e-11


def test_more_arguments_than_were_traced_are_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    many = sparsefx.export(Tokens(lambda m, *xs: m.o(m.h(sum(xs)))).double().eval(), (x,))
    with pytest.raises(TypeError, match="argument 'args' was traced with 1 entries; got 2"):
        many(x, x)


def test_a_squeezed_dimension_before_a_gather() -> None:
    torch.manual_seed(0)
    model = Tokens(lambda m, x: m.o(m.h(x).squeeze())).double().eval()
    compact = sparsefx.export(model, (torch.randn(1, 1, 6, dtype=torch.float64),), gather="always")
    for shape in ((1, 1), (3, 4), (1, 5)):
        x = torch.randn(*shape, 6, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(compact(x), model(x), rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_transformer_with_a_padding_mask() -> None:
    """torch's fast path makes nested tensors of a padded batch, which have no shape."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).double().eval()

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=mask)

    x, mask = torch.randn(2, 5, 8, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    with torch.no_grad():
        compact, expected = sparsefx.export(Padded(), (x, mask)), encoder(x, src_key_padding_mask=mask)
        torch.testing.assert_close(compact(x, mask)[~mask], expected[~mask], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("default", [None, list])
def test_a_defaultdict_of_results_stays_python(default: Callable[[], Any] | None) -> None:
    torch.manual_seed(0)
    model = Tokens(lambda m, x: defaultdict(default, out=m.o(m.h(x)))).double().eval()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="it makes a defaultdict, which its items do not describe"):
        compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x)["out"], model(x)["out"]) <= 1e-11
    assert compact(x).default_factory is default


def test_sizes_among_the_results() -> None:
    """A graph returns a plain tuple for a ``torch.Size``; what is inside of the model is compiled."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)).double()
    block[0].weight.data[::2] = 0
    model = Tokens(lambda m, x: (m.block(x), x.shape)).double().eval()
    model.block = block
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="its graph returns something else than its forward"):
        compact = sparsefx.export(model, (x,))
    assert isinstance(compact(x)[1], torch.Size)
    assert relative_difference(compact(x)[0], model(x)[0]) <= 1e-11
    assert compact.block.get_submodule("0").out_features == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("where", ["root", "inside", "inside a part"])
@pytest.mark.parametrize("fold", [True, False])
def test_scripted_modules(where: str, fold: bool) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)).double().eval()
    scripted: Any = torch.jit.script(block)
    model: nn.Module = scripted
    if where != "root":
        model = nn.Sequential(*copy.deepcopy(block), scripted)
        model[0].weight.data[::2] = 0
    if where == "inside a part":
        branches = lambda m, x: m.part(x) if x.sum() < 1e9 else x  # noqa: E731
        inner, model = model, Tokens(branches)
        model.part = inner
    model = model.double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    if where == "inside":
        compact = sparsefx.export(model, (x,), fold_batchnorm=fold)
    else:
        with pytest.warns(UserWarning, match="its forward stays Python"):
            compact = sparsefx.export(model, (x,), fold_batchnorm=fold)
    assert relative_difference(compact(x), model(x)) <= 1e-11
    assert any("torch.jit compiled it" in part.reason for part in compact.report.opaque)
    assert where == "root" or any(layer.shape == (4, 6) for layer in sparsefx.report(compact).layers)


def test_a_decorated_forward_whose_arguments_have_no_names() -> None:
    class Decorated(Tokens):
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

        forward.__wrapped__ = lambda self: None  # type: ignore[attr-defined]

    model = Decorated(lambda m, x: m.o(m.h(x))).double().eval()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="its arguments have no names .TypeError: too many positional"):
        compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x), model(x)) <= 1e-11


def masked_positions(m: Tokens, x: Tensor) -> Tensor:
    return m.o(F.relu(m.h(x)[x[..., 0] > 0]))


def masked_behind_others(m: Tokens, x: Tensor) -> Tensor:
    return m.o(F.relu(m.h(x)[None, :, x[0, :, 0] > 0]))


def masked_channels(m: Tokens, x: Tensor) -> Tensor:
    return m.h(x)[..., m.o.weight[0] > 0]


def masked_elements(m: Tokens, x: Tensor) -> Tensor:
    h = m.h(x)
    return h[h > 0]


MASKS = [masked_positions, masked_behind_others, masked_channels, masked_elements]


@pytest.mark.parametrize("gather", ["never", "always"])
@pytest.mark.parametrize("idiom", MASKS, ids=lambda idiom: idiom.__name__)
def test_indices_that_are_masks(idiom: Callable[..., Any], gather: Any) -> None:
    torch.manual_seed(0)
    model = Tokens(idiom).double().eval()
    compact = sparsefx.export(model, (torch.randn(3, 7, 6, dtype=torch.float64),), gather=gather)
    assert not compact.report.opaque
    for size in ((3, 7), (2, 4)):
        x = torch.randn(*size, 6, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11


EMPTY_PIECES: dict[str, Callable[..., Any]] = {
    "sum": lambda m, piece: piece.sum(1),
    "any": lambda m, piece: (piece > 0).any(1),
    "softmax": lambda m, piece: piece.softmax(1),
    "layer": lambda m, piece: m.o(piece),
    "product": lambda m, piece: piece @ piece.transpose(1, 2),
    "padding": lambda m, piece: F.pad(piece, (0, 0, 0, 1)),
}


@pytest.mark.parametrize("name", EMPTY_PIECES)
def test_pieces_of_nothing(name: str) -> None:
    """Sections without elements, as ``tensor_split`` makes of positions beyond the end."""
    torch.manual_seed(0)
    use = EMPTY_PIECES[name]

    def pieces(m: Tokens, x: Tensor) -> Any:
        h = F.relu(m.h(x + m.positions[:5]))
        return [use(m, piece) for piece in (*h.tensor_split([2, 9], 1), *h.split([0, 5], 1))]

    model = Tokens(pieces).double().eval()
    compact = sparsefx.export(model, (torch.randn(3, 5, 6, dtype=torch.float64),))
    assert not compact.report.opaque
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    for one, other in zip(compact(x), model(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_part_that_is_only_called_with_nothing() -> None:
    """A detector that finds nothing in the example."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    model = Tokens(lambda m, x: m.block(x[x[:, 0] > (5 if x.sum() < 1e9 else 6)]))
    model.block = nn.Sequential(block)
    model = model.double().eval()
    with pytest.warns(UserWarning, match="its forward stays Python"):
        compact = sparsefx.export(model, (torch.randn(3, 6, dtype=torch.float64),))
    x = torch.full((4, 6), 7.0, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11


def test_a_pass_that_fails_leaves_the_model_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AlignHeadDims, "run", lambda *_: 1 / 0)
    torch.manual_seed(0)
    model = Tokens(lambda m, x: m.o(m.h(x))).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    with pytest.warns(
        UserWarning, match=r"align_head_dims failed on it \(ZeroDivisionError: .*please report this"
    ):
        compact = sparsefx.export(model, (x,))
    assert relative_difference(compact(x), model(x)) <= 1e-11


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_module_that_holds_what_it_computed() -> None:
    """Computed tensors cannot be deep-copied; the older weight norm keeps one, and so may a user."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    model[0].weight.data[::2] = 0
    x = torch.randn(3, 6, dtype=torch.float64)
    model.last = model(x)
    assert relative_difference(sparsefx.export(model, (x,))(x), model(x)) <= 1e-11
    nn.utils.weight_norm(model[2])
    model(x).sum().backward()
    assert relative_difference(sparsefx.export(model, (x,))(x), model(x)) <= 1e-11


def test_an_embedding_of_one_index() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 3)).double().eval()
    model[1].weight.data[:, ::2] = 0
    compact = sparsefx.export(model, (torch.tensor(2),))
    assert relative_difference(compact(torch.tensor(4)), model(torch.tensor(4))) <= 1e-11
    assert not compact.report.opaque


def test_an_empty_vector_beside_others() -> None:
    """A cache that holds nothing yet: torch lets it stand beside operands of any rank, and twice."""
    torch.manual_seed(0)

    def cached(m: Tokens, x: Tensor) -> Tensor:
        h = F.relu(m.h(x))
        return m.o(torch.cat([x.new_zeros(0), h, F.relu(h), x.new_zeros(0), h], 1))

    model = Tokens(cached).double().eval()
    compact = sparsefx.export(model, (torch.randn(3, 5, 6, dtype=torch.float64),))
    assert not compact.report.opaque
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    assert relative_difference(compact(x), model(x)) <= 1e-11
    assert compact.get_submodule("h").out_features == 6


@pytest.mark.parametrize("tied", [False, True])
def test_columns_of_an_embedding_that_nobody_reads(tied: bool, tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = (
                nn.Embedding(11, 8, padding_idx=0),
                nn.Linear(8, 16),
                nn.Linear(16, 8),
            )
            self.head = nn.Linear(8, 11, bias=False)
            if tied:
                self.head.weight = self.table.weight
            with torch.no_grad():
                for weight in (self.a.weight, self.head.weight, self.b.weight.T, self.b.bias[None]):
                    weight[:, [1, 4]] = 0

        def forward(self, words: Tensor) -> Tensor:
            x = self.table(words)
            return self.head(x + self.b(F.relu(self.a(x))))

    torch.manual_seed(0)
    model = Words().double()
    compact = sparsefx.export(model, (torch.randint(0, 11, (2, 5)),))
    words = torch.randint(0, 11, (3, 7))
    assert relative_difference(compact(words), model(words)) <= 1e-11
    assert compact.get_submodule("table").embedding_dim == 6
    assert (compact.get_parameter("head.weight") is compact.get_parameter("table.weight")) == tied
    sparsefx.save(compact, tmp_path / "words.safetensors")
    assert torch.equal(sparsefx.load(tmp_path / "words.safetensors", model)(words), compact(words))


def test_unflatten_to_sizes_of_the_input() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.m, self.o = nn.Conv2d(3, 24, 1), nn.Linear(24, 24), nn.Conv2d(24, 5, 1)
            nn.init.zeros_(self.m.weight[::2])

        def forward(self, x: Tensor) -> Tensor:
            h = self.i(x).relu()
            return self.o(self.m(h.flatten(2).mT).mT.unflatten(2, h.shape[2:]))

    torch.manual_seed(0)
    model = Tokens().double()
    compact = sparsefx.export(model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),))
    assert compact.get_submodule("m").out_features == 12
    for height, width in ((4, 16), (11, 6), (8, 8)):
        x = torch.randn(1, 3, height, width, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11


@pytest.mark.parametrize("surroundings", ["inference", "autocast"])
def test_export_inside_contexts_of_the_users(surroundings: str) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    nn.init.zeros_(model[0].weight[::2])
    x = torch.randn(2, 6)
    context = torch.inference_mode() if surroundings == "inference" else torch.autocast("cpu", torch.bfloat16)
    with context:
        compact = sparsefx.export(model, (x,), gather="always")
    assert compact.get_submodule("0").out_features == 8
    torch.testing.assert_close(compact(x), model(x))
    compact.train()(x).sum().backward()


def test_export_leaves_counters_and_random_numbers_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n = nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.n += 1
            return self.a(x) * self.n

    model, x = Counts(), torch.randn(3, 6)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="its forward changes its attribute 'n'"):
        compact = sparsefx.export(model, (x,))
    assert torch.equal(torch.get_rng_state(), state)
    sparsefx.report(model, example_inputs=(x,))
    assert model.n == compact.n == 0
    assert not capfd.readouterr().err


def test_export_leaves_the_random_numbers_of_others_as_they_were() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * (random.random() + numpy.random.rand() + torch.rand(()))

    model = Draws()
    states = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
    with pytest.warns(UserWarning, match="draws random numbers outside the graph"):
        sparsefx.export(model, (torch.ones(3, 6),))
    assert (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()) == states


def test_a_pooled_size_that_one_more_pixel_does_not_change() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool2d(x, 2)
            y = y + F.interpolate(x, size=y.shape[2:])
            return self.head(F.max_pool2d(y, 2).flatten(1))

    model = Pooled().double()
    compact = sparsefx.export(model, (torch.randn(2, 3, 4, 4, dtype=torch.float64),))
    for size in (4, 5, 6, 7):
        x = torch.randn(3, 3, size, size, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11


@fx.wrap
def rolled_where_long(x: Tensor, shifts: list[int]) -> Tensor:
    if x.shape[1] <= 2:
        shifts[0] = 0
    return x.roll(shifts, [1])


def test_a_function_that_writes_to_a_list_of_the_graph() -> None:
    class Rolls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(6, 16), nn.Linear(16, 3)
            nn.init.zeros_(self.a.weight[::2])

        def forward(self, x: Tensor) -> Tensor:
            return rolled_where_long(self.c(self.a(x)), [1])

    torch.manual_seed(0)
    model = Rolls().double()
    compact = sparsefx.export(model, (torch.randn(2, 2, 6, dtype=torch.float64),))
    assert compact.report.captured == "whole"
    assert compact.get_submodule("a").out_features == 8
    for length in (1, 2, 5):
        x = torch.randn(3, length, 6, dtype=torch.float64)
        assert relative_difference(compact(x), model(x)) <= 1e-11
