"""Export on random graphs: whatever the network, the same function and never more parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import empty, randomize_norms, relative_difference
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx

WIDTHS = st.sampled_from([2, 4, 6, 8])
STEPS = st.sampled_from(
    ["conv", "pointwise", "depthwise", "grouped", "transposed", "norm", "relu", "tanh", "pool", "add", "cat",
     "gate", "split", "shuffle", "view", "permute"]
)  # fmt: skip
PATTERN = st.sampled_from(["rows", "columns", "both", "random", "everything"])


class RandomNetwork(nn.Module):
    """Maps of 6x6 handed through random steps; binary ones also read any earlier map of equal shape."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.plan: list[Callable[[RandomNetwork, list[Tensor]], Tensor]] = []
        channels = [3]
        for number, (kind, width, pick) in enumerate(steps):
            channels.append(self._add(f"layer{number}", kind, width, pick % len(channels), channels))
        self.head = nn.Linear(channels[-1] * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for step in self.plan:
            maps.append(step(self, maps))
        return self.head(maps[-1].flatten(1))

    def _add(self, name: str, kind: str, width: int, pick: int, channels: list[int]) -> int:
        """Append a step; returns the channels of its result."""
        inputs = channels[-1]
        if kind in ("split", "shuffle") and inputs % 2:
            kind = "tanh"
        layer = _layer(kind, inputs, width)
        if layer is not None:
            self.layers[name] = layer
            self.plan.append(lambda net, maps: net.layers[name](maps[-1]))  # of a copy, the copy's layer
            return int(getattr(layer, "out_channels", inputs))
        if kind == "cat":
            self.plan.append(lambda net, maps: torch.cat([maps[-1], maps[pick]], 1))
            return inputs + channels[pick]
        if kind == "add":
            other = next((i for i in range(pick, len(channels)) if channels[i] == inputs), len(channels) - 1)
            self.plan.append(lambda net, maps: maps[-1] + maps[other])
            return inputs
        self.plan.append(lambda net, maps: _step(kind, maps[-1]))
        return inputs


def _layer(kind: str, inputs: int, width: int) -> nn.Module | None:
    if kind == "conv":
        return nn.Conv2d(inputs, width, 3, padding=1)
    if kind == "pointwise":
        return nn.Conv2d(inputs, width, 1, bias=False)
    if kind == "depthwise":
        return nn.Conv2d(inputs, 2 * inputs, 3, padding=1, groups=inputs)
    if kind == "grouped":
        return nn.Conv2d(inputs, 2 * width, 1, groups=2) if inputs % 2 == 0 else None
    if kind == "transposed":
        return nn.ConvTranspose2d(inputs, width, 3, padding=1)
    if kind == "norm":
        return nn.BatchNorm2d(inputs)
    if kind == "pool":
        return nn.MaxPool2d(3, 1, 1)
    return None


def _step(kind: str, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    if kind == "relu":
        return F.relu(x)
    if kind == "gate":
        return x * x.mean((2, 3), keepdim=True).sigmoid()
    if kind == "split":
        one, other = x.split([1, x.size(1) - 1], 1)
        return torch.cat([other, one], 1)
    if kind == "shuffle":
        return (
            x.view(batch, 2, channels // 2, height, width)
            .transpose(1, 2)
            .reshape(batch, channels, height, width)
        )
    if kind == "view":
        return x.reshape(batch, channels, height * width).view(batch, channels, height, width)
    if kind == "permute":
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return torch.tanh(x)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(STEPS, WIDTHS, st.integers(0, 9)), min_size=1, max_size=9),
    PATTERN,
    st.integers(0, 999),
)
def test_export_of_a_random_network(steps: list[tuple[str, int, int]], pattern: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = RandomNetwork(steps).double().eval()
    randomize_norms(model)
    empty(model, pattern)
    compact = sparsefx.export(model, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    compact.graph.lint()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(compact(x), model(x)) <= 1e-11
    weights = [sum(p.numel() for p in m.parameters() if p.dim() > 1) for m in (model, compact)]
    assert weights[1] <= weights[0]
