"""Steps that random networks are composed of: on maps (batch, channels, height, width) and on tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Step(nn.Module):
    """A function of the last value, of an earlier one if it reads it, and of layers and parameters."""

    def __init__(self, function: Callable[..., Tensor], *parts: Any, other: int | None = None) -> None:
        super().__init__()
        self.function, self.other = function, other
        self.names = [f"part{number}" for number in range(len(parts))]
        for name, part in zip(self.names, parts, strict=True):
            self.register_buffer(name, part) if type(part) is Tensor else setattr(self, name, part)

    def forward(self, values: list[Tensor]) -> Tensor:
        read = values[-1:] if self.other is None else [values[-1], values[self.other]]
        return self.function(*read, *(getattr(self, name) for name in self.names))


Maker = Callable[[list[torch.Size], int, int], Step]
"""From the shapes of the values so far, a width (2 to 8) and a number that picks a variant: a step."""


def apply(*functions: Callable[[Tensor], Tensor]) -> Maker:
    """A step without parameters, in variants."""
    return lambda shapes, width, pick: Step(functions[pick % len(functions)])


def layer(*kinds: Callable[[int, int], nn.Module], dim: int = 1) -> Maker:
    """A layer made for (channels, width), in variants."""
    return lambda shapes, width, pick: Step(_call, kinds[pick % len(kinds)](shapes[-1][dim], width))


def _call(x: Tensor, part: nn.Module) -> Tensor:
    return part(x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def _half(count: int) -> int:
    """A divisor of a count that is neither 1 nor the count itself, if there is one."""
    return next((d for d in (2, 3, 5) if count % d == 0), 1)


# ---- maps ---------------------------------------------------------------------------------------


def _to_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _to_second(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _join_maps(function: Callable[[Tensor, Tensor], Tensor], equal: bool) -> Maker:
    """Read an earlier map, brought to the size of the last; of equal channels where that is needed."""

    def make(shapes: list[torch.Size], width: int, pick: int) -> Step:
        fits = [i for i, shape in enumerate(shapes) if not equal or shape[1] == shapes[-1][1]]

        same = [i for i in fits if shapes[i][2:] == shapes[-1][2:]]
        other = (same if pick % 3 else fits)[pick % len(same if pick % 3 else fits)]
        if shapes[other][2:] == shapes[-1][2:]:
            return Step(function, other=other)
        return Step(lambda x, y: function(x, F.interpolate(y, size=x.shape[2:])), other=other)

    return make


def _sections(x: Tensor, sizes: Any, use: int) -> Tensor:
    parts = x.chunk(sizes, 1) if isinstance(sizes, int) else x.split(list(sizes), 1)
    first, second, *rest = parts
    if use == 0:
        return torch.cat([second, first.relu(), *rest], 1)
    if use == 1 and first.shape == second.shape:
        return first * second.sigmoid()
    if use == 2:
        return second
    return torch.cat([first, *(part.tanh() for part in reversed(parts[1:]))], 1)


def _chunk(shapes: list[torch.Size], width: int, pick: int) -> Step:
    channels = shapes[-1][1]
    if pick % 2 and channels > 2:
        cut = 1 + width % (channels - 1)
        return Step(lambda x: _sections(x, (cut, channels - cut), pick // 2 % 4))
    count = 2 if pick % 4 else 3
    return Step(lambda x: _sections(x, count, pick // 2 % 4))


_SLICES: list[Callable[[Tensor, int], Tensor]] = [
    lambda x, k: x[:, :k],
    lambda x, k: x[:, k:],
    lambda x, k: x[:, -k:],
    lambda x, k: x[:, :-k],
    lambda x, k: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    lambda x, k: x[:, 1::2],
    lambda x, k: x[:, k].unsqueeze(1) + x,
    lambda x, k: torch.cat([x[:, k:, :, :], x[:, :k, ...]], dim=1),
    lambda x, k: torch.cat((x[:, -1:], x.narrow(1, 0, k)), 1),
    lambda x, k: x.select(1, -1)[:, None] * x,
    lambda x, k: torch.stack([x[:, 0], x[:, -1]], 1),
]


def _slice(shapes: list[torch.Size], width: int, pick: int) -> Step:
    cut = 1 + width % max(shapes[-1][1] - 1, 1)
    function = _SLICES[pick % len(_SLICES)]
    return Step(lambda x: function(x, cut))


def _grouped(x: Tensor, groups: int, pick: int, gain: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.view(b, groups, c // groups, h, w) if pick % 2 else x.unflatten(1, (groups, c // groups))
    kind = pick // 2 % 8
    if kind == 0:
        y = y * gain
    elif kind == 1:
        y = y.softmax(1)
    elif kind == 2:
        y = y - y.mean(2, keepdim=True)
    elif kind == 3:
        return y.sum(1)
    elif kind == 4:
        y = y.transpose(1, 2)
    elif kind == 5:
        y = torch.cat([y[:, 1:], y[:, :1].tanh()], 1)
    elif kind == 6:
        y = torch.stack([part.sigmoid() if i else part for i, part in enumerate(y.unbind(1))], 1)
    else:
        return (y * y.mean((3, 4), keepdim=True).softmax(1)).sum(1)
    return y.reshape(b, c, h, w) if pick % 3 else y.flatten(1, 2)


def _groups(shapes: list[torch.Size], width: int, pick: int) -> Step:
    channels = shapes[-1][1]
    groups = _half(channels)
    return Step(lambda x, gain: _grouped(x, groups, pick, gain), parameter(groups, channels // groups, 1, 1))


def _squeeze_excite(shapes: list[torch.Size], width: int, pick: int) -> Step:
    channels = shapes[-1][1]
    if pick % 2:
        parts = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        return Step(lambda x, s, e: x * e(F.relu(s(F.adaptive_avg_pool2d(x, 1)))).sigmoid(), *parts)
    parts = nn.Linear(channels, width), nn.Linear(width, channels)
    return Step(lambda x, s, e: x * e(F.relu(s(x.mean((2, 3))))).sigmoid()[:, :, None, None], *parts)


_EXPANDED: list[Callable[[Tensor, nn.Parameter], Tensor]] = [
    lambda x, p: x * p,
    lambda x, p: x + p.expand(x.shape[0], -1, -1, -1),
    lambda x, p: torch.cat([x, p.expand(x.size(0), -1, x.size(2), x.size(3))], 1),
    lambda x, p: x + p.expand_as(x),
    lambda x, p: torch.where(x > p, x, p),
    lambda x, p: torch.cat([p.repeat(x.shape[0], 1, *x.shape[2:]), x], 1),
    lambda x, p: torch.maximum(x, p) - p,
    lambda x, p: x * p.flatten().view(1, -1, 1, 1) + p.squeeze(),
]


def _with_parameter(shapes: list[torch.Size], width: int, pick: int) -> Step:
    return Step(_EXPANDED[pick % 7], parameter(1, shapes[-1][1], 1, 1))


def _einsum(shapes: list[torch.Size], width: int, pick: int) -> Step:
    channels = shapes[-1][1]
    kind = pick % 4
    if kind == 0:
        return Step(lambda x, w: torch.einsum("bchw,oc->bohw", x, w), parameter(width, channels))
    if kind == 1:
        return Step(lambda x, w: torch.einsum("bchw,co->bohw", x, w), parameter(channels, width))
    if kind == 2:
        return Step(lambda x, w: torch.einsum("bchw,c->bchw", x, w), parameter(channels))
    return Step(lambda x, w: (_to_last(x) @ w).movedim(-1, 1), parameter(channels, width))


def _twice(shapes: list[torch.Size], width: int, pick: int) -> Step:
    channels = shapes[-1][1]
    shared = nn.Conv2d(channels, channels, 1) if pick % 2 else nn.Conv2d(channels, channels, 3, padding=1)
    if pick % 3 == 0:
        return Step(lambda x, part: part(x) + part(x.flip(3)), shared)
    return Step(lambda x, part: part(part(x).relu()), shared)


def _bottleneck(shapes: list[torch.Size], width: int, pick: int) -> Step:
    channels = shapes[-1][1]
    parts = [nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)]
    if pick % 2:
        parts[2] = nn.Conv2d(width, width, 3, padding=1, groups=width)
    body = nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(width, channels, 1))
    return Step(lambda x, body: x + body(x), body)


def _mixer(shapes: list[torch.Size], width: int, pick: int) -> Step:
    channels = shapes[-1][1]
    up, down = nn.Linear(channels, width), nn.Linear(width, channels)
    body, scale = nn.Sequential(nn.LayerNorm(channels), up, nn.GELU(), down), parameter(channels)
    if pick % 2:
        return Step(lambda x, body, scale: x + _to_second(scale * body(_to_last(x))), body, scale)
    return Step(lambda x, body: x + _to_second(body(_to_last(x))), body)


def _windows(shapes: list[torch.Size], width: int, pick: int) -> Step:
    """Attention in windows of 2 x 2, as Swin does it."""
    channels = shapes[-1][1]
    attend = _attention_modules(channels, pick)

    def windows(x: Tensor, *parts: Any) -> Tensor:
        b, c, h, w = x.shape
        y = _to_last(x).reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        y = attend[0](y, *parts)
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + _to_second(y)

    return Step(windows, *attend[1])


def _as_tokens(shapes: list[torch.Size], width: int, pick: int) -> Step:
    """A step on tokens in between."""
    b, c, h, w = shapes[-1]
    names = sorted(TOKEN_STEPS)
    inner = TOKEN_STEPS[names[pick % len(names)]]([torch.Size((b, h * w, c))], width, pick // 7)

    def tokens(x: Tensor, inner: nn.Module) -> Tensor:
        y = inner([x.flatten(2).transpose(1, 2)])
        return y.transpose(1, 2).reshape(x.shape[0], -1, x.shape[2], x.shape[3])

    return Step(tokens, inner)


def _channel_norm(shapes: list[torch.Size], width: int, pick: int) -> Step:
    _, c, h, w = shapes[-1]
    kind = pick % 5
    if kind == 0:
        return Step(lambda x, norm: norm(x), nn.LayerNorm([h, w]))
    if kind == 1:
        return Step(lambda x, norm: norm(x), nn.LayerNorm([c, h, w]))
    if kind == 2:
        return Step(lambda x, norm: _to_second(norm(_to_last(x))), nn.RMSNorm(c))
    if kind == 3:
        return Step(_hand_written_norm, parameter(c), parameter(c))
    return Step(lambda x, norm: _to_second(norm(_to_last(x))), nn.LayerNorm(c))


def _hand_written_norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    return gain[:, None, None] * ((x - u) / torch.sqrt(s + 1e-2)) + shift[:, None, None]


MAP_STEPS: dict[str, Maker] = {
    "conv": layer(
        lambda c, n: nn.Conv2d(c, n, 3, padding=1),
        lambda c, n: nn.Conv2d(c, n, 1, bias=False),
        lambda c, n: nn.Conv2d(c, n, 3, padding="same", dilation=2, bias=False),
        lambda c, n: nn.Conv2d(c, n, 3, padding=1, padding_mode="reflect"),
        lambda c, n: nn.Conv2d(c, n, 1),
    ),
    "grouped": layer(
        lambda c, n: nn.Conv2d(c, 2 * c, 3, padding=1, groups=c),
        lambda c, n: nn.Conv2d(c, 2 * n, 1, groups=2),
        lambda c, n: nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False),
    ),
    "transposed": layer(
        lambda c, n: nn.ConvTranspose2d(c, n, 3, padding=1),
        lambda c, n: nn.ConvTranspose2d(c, n, 2, stride=2),
        lambda c, n: nn.ConvTranspose2d(c, c, 3, padding=1, groups=_half(c)),
    ),
    "batch_norm": layer(lambda c, n: nn.BatchNorm2d(c), lambda c, n: nn.BatchNorm2d(c, affine=False)),
    "norm": layer(
        lambda c, n: nn.GroupNorm(_half(c), c),
        lambda c, n: nn.GroupNorm(1, c),
        lambda c, n: nn.InstanceNorm2d(c, affine=True),
        lambda c, n: nn.InstanceNorm2d(c),
        lambda c, n: nn.InstanceNorm2d(c, track_running_stats=True),
        lambda c, n: nn.GroupNorm(c, c),
    ),
    "layer_norm": _channel_norm,
    "relu": apply(F.relu, lambda x: F.relu(x, inplace=True), lambda x: x.clamp(0, 1), F.leaky_relu),
    "tanh": apply(torch.tanh, torch.sigmoid, F.gelu, F.silu, torch.exp, lambda x: 1 - x, torch.cos),
    "layer activation": layer(
        lambda c, n: nn.PReLU(c), lambda c, n: nn.PReLU(), lambda c, n: nn.GLU(1), lambda c, n: nn.Dropout(),
        lambda c, n: nn.ReLU(inplace=True), lambda c, n: nn.Dropout2d(), lambda c, n: nn.Softmax(1),
        lambda c, n: nn.LocalResponseNorm(2),
    ),
    "pool": apply(
        lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2), lambda x: x - F.adaptive_avg_pool2d(x, 1),
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    "resize": apply(
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
        lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:], mode="bilinear"),
        lambda x: F.pixel_shuffle(x, 2), lambda x: F.pixel_unshuffle(x, 2),
        lambda x: F.pad(x[:, :, 1:, :-1], (1, 0, 0, 1)), lambda x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
    ),
    "softmax": apply(
        lambda x: x.softmax(1), lambda x: x.log_softmax(1), lambda x: x.flatten(2).softmax(-1).view(x.shape),
        lambda x: x * x.softmax(dim=-1),
    ),
    "over channels": apply(
        lambda x: x * x.max(1, keepdim=True)[0].sigmoid(), lambda x: x - x.mean(1, keepdim=True),
        lambda x: x + x.amax(1, keepdim=True), lambda x: torch.cat([x, x.mean(1, keepdim=True)], 1),
        lambda x: x.cumsum(1), lambda x: x / (1 + x.norm(dim=1, keepdim=True)),
        lambda x: F.normalize(x, dim=1),
        lambda x: x.sort(1)[0], lambda x: x.max(dim=1, keepdim=True).values * x,
        lambda x: x - x.var(1, keepdim=True) if x.shape[1] > 1 else x,
    ),
    "gate": apply(
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), lambda x: x * x,
        lambda x: x * F.adaptive_max_pool2d(x, 1).tanh(), lambda x: x.relu() * x.neg().exp(),
    ),
    "move": apply(
        lambda x: x.roll(1, 1), lambda x: x.flip(1), lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
        lambda x: x.roll((1, 1), dims=(2, 3)), lambda x: F.pad(x, (0, 0, 0, 0, 0, 1), value=1.5),
        lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)) if x.shape[1] > 1 else x, lambda x: F.channel_shuffle(x, 2),
        lambda x: x.repeat(1, 2, 1, 1), lambda x: x.repeat_interleave(2, 1), lambda x: x.flip(2, 3),
        lambda x: torch.stack([x, x.relu()], 2).flatten(1, 2), lambda x: torch.stack(x.unbind(1)[::-1], 1),
        lambda x: x.index_select(1, torch.tensor([0, x.shape[1] - 1])), lambda x: x[:, [0, -1, 0]],
    ),
    "view": apply(
        lambda x: x.reshape(x.shape[0], x.shape[1], -1).view(x.shape), lambda x: _to_second(_to_last(x)),
        lambda x: _to_last(x).contiguous().view(-1, x.shape[1]).reshape(
            x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2),
        lambda x: x.flatten(1).unflatten(1, x.shape[1:]), lambda x: x.transpose(2, 3),
        lambda x: x.flatten(0, 1).view(-1, x.shape[1], *x.shape[2:]),
        lambda x: x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    ),
    "chunk": _chunk,
    "slice": _slice,
    "groups": _groups,
    "squeeze excite": _squeeze_excite,
    "parameter": _with_parameter,
    "einsum": _einsum,
    "twice": _twice,
    "bottleneck": _bottleneck,
    "mixer": _mixer,
    "windows": _windows,
    "tokens": _as_tokens,
    "add": _join_maps(lambda x, y: x + y, True),
    "cat": _join_maps(lambda x, y: torch.cat([x, y], 1), False),
    "mul": _join_maps(lambda x, y: x * y.sigmoid(), True),
    "sub": _join_maps(lambda x, y: (x - y).relu() + y, True),
}  # fmt: skip


# ---- tokens -------------------------------------------------------------------------------------


def _heads(channels: int) -> int:
    return 2 if channels % 2 == 0 else 1


def _attend(q: Tensor, k: Tensor, v: Tensor, pick: int, mask: Tensor | None = None) -> Tensor:
    """Attention of (batch, heads, tokens, width), written in a few ways."""
    kind = pick % 4
    if kind == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if kind == 1 and mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if kind == 2:
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return torch.matmul(weights, v) if kind != 2 else torch.einsum("bhqk,bhkd->bhqd", weights, v)


def _fused(x: Tensor, qkv: nn.Linear, proj: nn.Linear, heads: int, pick: int) -> Tensor:
    b, n, c = x.shape
    kind = pick % 5
    projected = qkv(x)
    if kind == 0:
        q, k, v = projected.reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
    elif kind == 1:
        parts = projected.view(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
    elif kind == 2:
        q, k, v = (part.view(b, n, heads, -1).transpose(1, 2) for part in projected.chunk(3, -1))
    elif kind == 3:
        q, k, v = (part.unflatten(-1, (heads, c // heads)).transpose(1, 2) for part in projected.split(c, 2))
    else:
        q, k, v = projected.view(b, n, heads, 3 * c // heads).transpose(1, 2).chunk(3, dim=-1)
    out = _attend(q, k, v, pick // 5)
    return proj(out.transpose(1, 2).reshape(b, n, c) if pick % 2 else out.permute(0, 2, 1, 3).flatten(2))


def _separate(x: Tensor, y: Tensor, parts: tuple[Any, ...], heads: int, pick: int) -> Tensor:
    q, k, v, proj = parts
    width = q.out_features // heads
    split = [
        part.view(*part.shape[:2], heads, width).transpose(1, 2)
        if pick % 2
        else part.reshape(x.shape[0], -1, heads, width).permute(0, 2, 1, 3)
        for part in (q(x), k(y), v(y))
    ]
    kind = pick // 2 % 4
    if kind == 1:  # rotary positions, without sines
        half = width // 2
        split[:2] = [torch.cat([-part[..., half:], part[..., :half]], -1) + part for part in split[:2]]
    if kind == 2:
        split[:2] = [F.normalize(part, dim=-1) for part in split[:2]]
    out = _attend(*split, pick // 3).transpose(1, 2)
    return proj(out.reshape(x.shape[0], x.shape[1], -1) if pick % 3 else out.flatten(-2))


def _few_heads(x: Tensor, parts: tuple[Any, ...], groups: int, pick: int) -> Tensor:
    """Grouped queries: ``groups`` heads of queries for one of keys and values."""
    q, k, v, proj = parts
    width = k.out_features // 2 if k.out_features % 2 == 0 else k.out_features
    queries = q(x).unflatten(-1, (-1, width)).transpose(1, 2)
    keys, values = (part(x).unflatten(-1, (-1, width)).transpose(1, 2) for part in (k, v))
    kind = pick % 4
    if kind == 0:
        out = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
    else:
        if kind == 1:
            keys, values = (part.repeat_interleave(groups, 1) for part in (keys, values))
        elif kind == 2:
            keys, values = (
                part[:, :, None].expand(-1, -1, groups, -1, -1).reshape(part.shape[0], -1, *part.shape[2:])
                for part in (keys, values)
            )
        else:
            b, h, n, d = keys.shape
            keys, values = (
                part.unsqueeze(2).expand(b, h, groups, n, d).flatten(1, 2) for part in (keys, values)
            )
        out = _attend(queries, keys, values, pick // 4)
    return proj(out.transpose(1, 2).flatten(2))


def _attention_modules(channels: int, pick: int) -> tuple[Callable[..., Tensor], list[nn.Module]]:
    heads, bias = _heads(channels), bool(pick % 3)
    kind, pick = pick % 3, pick // 3
    if kind == 0:
        modules: list[nn.Module] = [nn.Linear(channels, 3 * channels, bias), nn.Linear(channels, channels)]
        return lambda x, *parts: _fused(x, *parts, heads, pick), modules
    if kind == 1:
        sizes = [(channels, 4 * heads)] * 3 + [(4 * heads, channels)]
        modules = [nn.Linear(*size, bias=bias) for size in sizes]
        return lambda x, *parts: _separate(x, x, parts, heads, pick), modules
    sizes = [(channels, 8), (channels, 4), (channels, 4), (8, channels)]
    modules = [nn.Linear(*size, bias=bias) for size in sizes]
    return lambda x, *parts: _few_heads(x, parts, 2, pick), modules


def _attention(shapes: list[torch.Size], width: int, pick: int) -> Step:
    attend, modules = _attention_modules(shapes[-1][2], pick // 2)
    if pick % 2:
        return Step(lambda x, *parts: x + attend(x, *parts), *modules)
    return Step(attend, *modules)


def _multihead(shapes: list[torch.Size], width: int, pick: int) -> Step:
    """``nn.MultiheadAttention`` of the tokens with themselves."""
    channels, length = shapes[-1][2], shapes[-1][1]
    kind, bias = pick % 8, bool(pick // 8 % 2)
    part = nn.MultiheadAttention(channels, _heads(channels), bias=bias, batch_first=kind != 3)
    barred = torch.ones(length, length).triu(1).bool()
    calls: list[Callable[..., Tensor]] = [
        lambda x, m: m(x, x, x, need_weights=False)[0],
        lambda x, m: x + m(x, x, x)[0],
        lambda x, m, mask: m(x, x, x, attn_mask=mask, need_weights=False)[0],
        lambda x, m: m(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].transpose(0, 1),
        lambda x, m: m(query=x, key=x, value=x, key_padding_mask=torch.zeros(x.shape[0], x.shape[1]) > 0)[0],
        lambda x, m, mask: x + m(x, x, x, None, False, mask.to(x.dtype) * -1e4)[0],
        lambda x, m: m(x.tanh(), x, x.relu())[0],
        lambda x, m: (lambda out: out[0] * out[1].sum(-1, keepdim=True))(m(x, x, x)),
    ]
    masks = [barred] if kind in (2, 5) else []
    return Step(calls[kind], part, *masks)


def _cross(shapes: list[torch.Size], width: int, pick: int) -> Step:
    """Attention to an earlier value, of any width and length."""
    other = pick % len(shapes)
    channels, outside = shapes[-1][2], shapes[other][2]
    heads = _heads(channels)
    if pick % 3 == 0:
        part = nn.MultiheadAttention(channels, heads, kdim=outside, vdim=outside, batch_first=True)
        return Step(lambda x, y, m: x + m(x, y, y, need_weights=False)[0], part, other=other)
    sizes = [(channels, 4 * heads), (outside, 4 * heads), (outside, 4 * heads), (4 * heads, channels)]
    modules = [nn.Linear(*size) for size in sizes]
    return Step(lambda x, y, *parts: x + _separate(x, y, parts, heads, pick // 3), *modules, other=other)


def _relative_bias(shapes: list[torch.Size], width: int, pick: int) -> Step:
    _, n, c = shapes[-1]
    modules = [nn.Linear(c, 3 * c), nn.Linear(c, c)]

    def attend(x: Tensor, bias: Tensor, qkv: nn.Linear, proj: nn.Linear) -> Tensor:
        q, k, v = qkv(x).view(x.shape[0], n, 3, _heads(c), -1).permute(2, 0, 3, 1, 4)
        if pick % 2:
            return proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))
        weights = (q @ k.mT * 0.7 + bias).softmax(-1)
        return proj((weights @ v).transpose(1, 2).reshape(x.shape))

    return Step(attend, parameter(1, _heads(c), n, n), *modules)


def _odd_attention(shapes: list[torch.Size], width: int, pick: int) -> Step:
    """Between heads, between channels, or with one projection in two roles."""
    c = shapes[-1][2]
    kind = pick % 4

    def attend(x: Tensor, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear) -> Tensor:
        parts = [layer(x).unflatten(-1, (2, -1)) for layer in (q, k, v)]
        if kind == 0:
            return out(_attend(*parts, pick // 4).flatten(2))
        if kind == 1:
            parts = [part.permute(0, 2, 3, 1) for part in parts]
            return out(_attend(*parts, pick // 4).permute(0, 3, 1, 2).reshape(*x.shape[:2], -1))
        parts = [part.transpose(1, 2) for part in parts]
        values = parts[1] if kind == 2 else parts[0]
        return out(_attend(parts[0], parts[1], values, pick // 4).transpose(1, 2).flatten(2))

    return Step(attend, *(nn.Linear(c, 2 * width) for _ in range(3)), nn.Linear(2 * width, c))


def _mlp(shapes: list[torch.Size], width: int, pick: int) -> Step:
    c = shapes[-1][2]
    kind = pick % 5
    if kind == 0:
        parts = nn.Linear(c, 2 * width), nn.Linear(width, c)

        def gated(x: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
            a, b = up(x).chunk(2, dim=-1)
            return x + down(a * F.gelu(b))

        return Step(gated, *parts)
    if kind == 1:
        three = nn.Linear(c, width, False), nn.Linear(c, width, False), nn.Linear(width, c, False)
        return Step(lambda x, gate, up, down: x + down(F.silu(gate(x)) * up(x)), *three)
    if kind == 2:
        return Step(lambda x, up, down: down(F.glu(up(x))), nn.Linear(c, 2 * width), nn.Linear(width, c))
    if kind == 3:
        return Step(
            lambda x, w, b, v: x + F.linear(F.relu(F.linear(x, w, b)), v),
            parameter(width, c), parameter(width), parameter(c, width),
        )  # fmt: skip
    body = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, width), nn.GELU(), nn.Dropout(), nn.Linear(width, c))
    return Step(lambda x, body, scale: x + scale * body(x), body, parameter(c))


def _tied(shapes: list[torch.Size], width: int, pick: int) -> Step:
    c = shapes[-1][2]
    kind = pick % 4
    if kind == 0:
        return Step(lambda x, part: part(part(x).relu()), nn.Linear(c, c))
    if kind == 1:
        return Step(lambda x, w: F.linear(F.linear(x, w).relu(), w.t()), parameter(width, c))
    if kind == 2:
        one, other = nn.Linear(c, width), nn.Linear(c, width)
        other.weight = one.weight
        return Step(lambda x, a, b: torch.cat([a(x), b(x.tanh())], -1), one, other)
    body = nn.TransformerEncoderLayer(c, _heads(c), width, batch_first=True, norm_first=bool(pick // 4 % 2))
    return Step(lambda x, body: body(body(x)), body)


def _encoder(shapes: list[torch.Size], width: int, pick: int) -> Step:
    c = shapes[-1][2]
    first = bool(pick % 2)
    one = nn.TransformerEncoderLayer(
        c, _heads(c), width, batch_first=True, norm_first=first, activation="gelu" if pick % 3 else "relu"
    )
    if pick % 5 == 0:
        return Step(_call, nn.TransformerEncoder(one, 2, enable_nested_tensor=False))
    if pick % 5 == 1:
        decoder = nn.TransformerDecoderLayer(c, _heads(c), width, batch_first=True, norm_first=first)
        return Step(lambda x, part: part(x, x.tanh()), decoder)
    return Step(_call, one)


def _with_tokens(shapes: list[torch.Size], width: int, pick: int) -> Step:
    _, n, c = shapes[-1]
    kind = pick % 6
    if kind == 0:
        return Step(lambda x, cls: torch.cat([cls.expand(x.shape[0], -1, -1), x], 1), parameter(1, 1, c))
    if kind == 1:
        return Step(lambda x, pos: x + pos[:, : x.shape[1]], parameter(1, 16, c))
    if kind == 2:
        return Step(lambda x, pos: x + pos, parameter(1, n, c))
    if kind == 3:
        return Step(lambda x, pos: x + pos(torch.arange(x.size(1))), nn.Embedding(16, c))
    if kind == 4:
        first = parameter(1, 1, c)
        return Step(lambda x, cls: torch.cat((cls.repeat(x.size(0), 1, 1), x[:, 1:]), dim=1), first)
    queries, attend = parameter(1, 2, c), nn.MultiheadAttention(c, _heads(c), batch_first=True)
    return Step(lambda x, q, m: m(q.expand(x.shape[0], -1, -1), x, x)[0], queries, attend)


def _mix_tokens(shapes: list[torch.Size], width: int, pick: int) -> Step:
    _, n, c = shapes[-1]
    kind = pick % 4
    if kind == 0:
        conv = nn.Conv1d(c, width, 3, padding=1)
        return Step(lambda x, conv: conv(x.transpose(1, 2)).transpose(1, 2), conv)
    if kind == 1:
        return Step(lambda x, part: x + part(x.transpose(1, 2)).mT, nn.Linear(n, n))
    if kind == 2:
        return Step(lambda x, part: part(x.mT).mT, nn.Conv1d(c, c, 3, padding=2, groups=c, bias=False))
    return Step(lambda x, w: torch.einsum("bnc,cd->bnd", x, w), parameter(c, width))


def _join_tokens(shapes: list[torch.Size], width: int, pick: int) -> Step:
    fits = [i for i, shape in enumerate(shapes) if shape == shapes[-1]]
    other = fits[pick % len(fits)]
    if pick % 4 == 0:
        fits = [i for i, shape in enumerate(shapes) if shape[1] == shapes[-1][1]]
        return Step(lambda x, y: torch.cat([x, y], -1), other=fits[pick % len(fits)])
    if pick % 4 == 1:
        return Step(lambda x, y: x * y.sigmoid(), other=other)
    return Step(lambda x, y: x + y, other=other)


TOKEN_STEPS: dict[str, Maker] = {
    "linear": layer(
        lambda c, n: nn.Linear(c, n), lambda c, n: nn.Linear(c, n, bias=False), lambda c, n: nn.Linear(c, c),
        dim=2,
    ),
    "norm": layer(
        lambda c, n: nn.LayerNorm(c), lambda c, n: nn.RMSNorm(c),
        lambda c, n: nn.LayerNorm(c, elementwise_affine=False), lambda c, n: nn.LayerNorm(c, bias=False),
        dim=2,
    ),
    "activation": apply(
        F.relu, F.gelu, torch.tanh, lambda x: F.dropout(x, 0.5, False), lambda x: x * x.sigmoid()
    ),
    "attention": _attention,
    "multihead": _multihead,
    "cross": _cross,
    "relative": _relative_bias,
    "odd attention": _odd_attention,
    "encoder": _encoder,
    "mlp": _mlp,
    "tied": _tied,
    "with tokens": _with_tokens,
    "mix tokens": _mix_tokens,
    "join": _join_tokens,
    "move": apply(
        lambda x: x[:, :-1], lambda x: x.roll(1, 1), lambda x: torch.cat([x[..., 1:], x[..., :1]], -1),
        lambda x: x - x.mean(1, keepdim=True), lambda x: x.softmax(-1), lambda x: x[:, ::2],
        lambda x: x.max(1, keepdim=True)[0] + x, lambda x: x[..., ::2], lambda x: x[:, :1] * x,
        lambda x: torch.cat([x[:, 0::2, :], x[:, 1::2, :]], 1), lambda x: x * x[..., -1:],
        lambda x: x.reshape(-1, x.shape[-1]).view(x.shape),
    ),
}  # fmt: skip
