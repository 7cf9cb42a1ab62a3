"""What export returns goes on: torch.export, torch.compile, ONNX."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, build, empty, relative_difference
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx

SMALL = ("mlp", "lenet5", "wide_resnet", "squeezenet", "mixed")
QUICK = ("mixed",)
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]


class Mixed(nn.Module):
    """Depthwise, grouped, transposed and functional layers, tied weights, sizes, an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped, self.up = nn.Conv2d(8, 8, 1, groups=2), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.w = nn.Parameter(torch.randn(12, 6))
        self.one, self.two, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
        x = F.relu6(self.depthwise(F.silu(self.first(x))))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        x = self.up(self.grouped(x) + F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0))
        x = x.clamp(min=-1)[:, :, ::2].mean((2, 3))
        x = F.gelu(F.linear(x, self.w)) * 0.5
        return self.head(self.two(torch.tanh(self.one(x)))).softmax(-1)


def model_of(name: str) -> tuple[nn.Module, int]:
    """A model with empty channels and its image size."""
    if name != "mixed":
        return build(name, "both").float(), NETWORKS[name][1][0]
    torch.manual_seed(0)
    model = Mixed().eval()
    empty(model, "both")
    return model, 8


@functools.cache
def compact_network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A float32 export of a network, saved and loaded, with inputs of two batch sizes; made once."""
    model, size = model_of(name)
    compact = sparsefx.export(model, (torch.randn(2, 3, size, size),))
    with tempfile.TemporaryDirectory() as folder:
        sparsefx.save(compact, Path(folder, "compact.safetensors"))
        loaded = sparsefx.load(Path(folder, "compact.safetensors"), model)
    return loaded, torch.randn(2, 3, size, size), torch.randn(5, 3, size, size)


@pytest.mark.parametrize("name", CASES)
def test_torch_export_with_a_dynamic_batch(name: str) -> None:
    compact, example, other = compact_network(name)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(compact, (example,), dynamic_shapes=({0: batch},))
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    restored = torch.export.load(stream).module()
    with torch.no_grad():
        for x in (example, other):
            assert relative_difference(restored(x), compact(x)) <= 1e-5


COMPILED = [(name, "aot_eager") for name in QUICK] + [
    pytest.param(name, backend, marks=pytest.mark.slow)
    for name in SMALL
    for backend in ("eager", "aot_eager")
    if (name, backend) not in [(quick, "aot_eager") for quick in QUICK]
]


@pytest.mark.parametrize(
    ("name", "backend"), [*COMPILED, pytest.param("mixed", "inductor", marks=pytest.mark.slow)]
)
def test_torch_compile_in_one_graph(name: str, backend: str) -> None:
    compact, example, other = compact_network(name)
    torch._dynamo.reset()
    compiled = torch.compile(compact, fullgraph=True, backend=backend)
    with torch.no_grad():
        for x in (example, other):
            assert relative_difference(compiled(x), compact(x)) <= 1e-5


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "mixed" else pytest.mark.slow) for name in SMALL]
)
def test_onnx_runtime_computes_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    if name == "wide_resnet" and torch.__version__ < "2.7":
        pytest.skip("the exporter of torch 2.6 fails on a BatchNorm, of any model")
    compact, example, other = compact_network(name)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(compact, (example,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    program.save(tmp_path / "compact.onnx")
    session = runtime.InferenceSession(tmp_path / "compact.onnx", providers=["CPUExecutionProvider"])
    for x in (example, other):
        (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert relative_difference(torch.from_numpy(actual), compact(x)) <= 1e-5
