#!/usr/bin/env bash
# A sparse weight in an ONNX file is valid as graph.sparse_initializer and as a Constant's sparse_value;
# who reads which differs. ONNX Runtime computes both, OpenVINO the Constant alone, and onnx's own
# reference evaluator neither. onnx's shape inference takes the initializer for a scalar, so that
# check_model(full_check=True) refuses what check_model accepts.
#
# Seen:
#
#     {'onnx': '1.23.2', 'onnxruntime': '1.32.0', 'openvino': '2026.4.1-22982-e213a147257-releases/2026/4', 'numpy': '2.4.6'} Python 3.11.7
#         InferenceError ference error(s): (op_type:MatMul): [ShapeInferenceError] Input tensors of wrong rank (0).
#         ValueError Protocol message SparseTensorProto has no "data_location" field.
#         TypeError Tensor, SparseTensor). All returned types: [<class 'onnx.reference.op_run.SparseTensor'>].
#         RuntimeError /frontends/onnx/frontend/src/core/graph_cache.cpp:27: weight node not found in graph cache
#     check_model initializer: right    constant: right
#     full_check  initializer: refused  constant: right
#     reference   initializer: refused  constant: refused
#     onnxruntime initializer: right    constant: right
#     openvino    initializer: refused  constant: right
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" \
    onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6 || exit 2
PYTHONPATH="$folder" python3 - <<'PY'
import platform

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

versions = {module.__name__: module.__version__ for module in (onnx, onnxruntime, openvino, np)}
print(versions, "Python", platform.python_version())
weight = np.zeros((4, 3), np.float32)
weight[1, 2], weight[3, 0] = 5, 7
x = np.ones((1, 4), np.float32)
values = numpy_helper.from_array(weight[weight != 0], "weight")
indices = numpy_helper.from_array(np.flatnonzero(weight).astype(np.int64), "indices")
sparse = helper.make_sparse_tensor(values, indices, list(weight.shape))


def model(nodes, **initializers):
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 4]), ("y", [1, 3]))]
    graph = helper.make_graph(nodes, "sparse", info[:1], info[1:], **initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


matmul = helper.make_node("MatMul", ["x", "weight"], ["y"])
models = {
    "initializer": model([matmul], sparse_initializer=[sparse]),
    "constant": model([helper.make_node("Constant", [], ["weight"], sparse_value=sparse), matmul]),
}
readers = {
    "check_model": lambda m: onnx.checker.check_model(m) or x @ weight,
    "full_check": lambda m: onnx.checker.check_model(m, full_check=True) or x @ weight,
    "reference": lambda m: ReferenceEvaluator(m).run(None, {"x": x})[0],
    "onnxruntime": lambda m: onnxruntime.InferenceSession(
        m.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0],
    "openvino": lambda m: openvino.compile_model(openvino.Core().read_model(m.SerializeToString()), "CPU")(x)[0],
}


def outcome(read, of):
    try:
        return "right" if np.array_equal(read(of), x @ weight) else "wrong"
    except Exception as error:
        print("   ", type(error).__name__, " ".join(str(error).split())[-90:])
        return "refused"


seen = {name: tuple(outcome(read, of) for of in models.values()) for name, read in readers.items()}
for name, found in seen.items():
    print(f"{name:11}", *(f"{way}: {what:8}" for way, what in zip(models, found)))
assert seen == {
    "check_model": ("right", "right"),
    "full_check": ("refused", "right"),
    "reference": ("refused", "refused"),
    "onnxruntime": ("right", "right"),
    "openvino": ("refused", "right"),
}, "the behaviour has changed"
PY
