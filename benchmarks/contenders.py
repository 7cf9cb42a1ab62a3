"""Ways to run a dense network on a CPU, each a function of one input, on ``threads`` threads."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Contender = Callable[[Tensor], Any]
Maker = Callable[[nn.Module, Tensor, int], Contender]


def eager(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """Torch's kernels, one call after the other."""
    return model


def channels_last(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """The same on ``[N, H, W, C]``; the conversion of the input counts. Rows stay as they are."""
    if x.dim() != 4:
        return model
    converted = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda x: converted(x.contiguous(memory_format=torch.channels_last))


def prepacked(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """TorchScript's frozen graph: oneDNN with weights in its own blocked layout, activations fused."""
    traced = torch.jit.freeze(torch.jit.trace(model, x))
    fast: Contender = torch.jit.optimize_for_inference(traced)
    fast(x), fast(x)  # it compiles at the second call
    return fast


def compiled(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """``torch.compile`` with constants folded into the code (``freezing``)."""
    from torch._inductor import config

    with config.patch(freezing=True):
        fast: Contender = torch.compile(copy.deepcopy(model), dynamic=False)
        fast(x)
    return fast


def onnx_runtime(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """ONNX Runtime with all its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(_onnx(model, x), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})[0]


def openvino(model: nn.Module, x: Tensor, threads: int) -> Contender:
    """OpenVINO in float32, tuned for latency."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(core.read_model(io.BytesIO(_onnx(model, x))), "CPU", settings)
    fast = request.create_infer_request()
    return lambda x: fast.infer([x.numpy()], share_inputs=True)[0]


def _onnx(model: nn.Module, x: Tensor) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


TORCH: dict[str, Maker] = {
    "eager": eager,
    "channels-last": channels_last,
    "prepacked": prepacked,
    "compile": compiled,
}
"""What "dense" is the best of."""

OTHERS: dict[str, Maker] = {"onnxruntime": onnx_runtime, "openvino": openvino}
"""What a user could take instead."""
