#!/usr/bin/env bash
# What becomes of not-a-number depends on the operation and on the runtime. ONNX Runtime keeps NaN in
# Relu and Clip and drops it in MaxPool; OpenVINO makes Relu's and Clip's NaN 0 and HardSigmoid's 1. A
# network that diverged can so have finite, plausible outputs where it is deployed. torch keeps NaN in all.
#
# Seen:
#
#     {'onnx': '1.23.2', 'onnxruntime': '1.32.0', 'openvino': '2026.4.1-22982-e213a147257-releases/2026/4', 'numpy': '2.4.6'} Python 3.11.7
#     Relu        of NaN: onnxruntime nan  openvino 0.0
#     Clip        of NaN: onnxruntime nan  openvino 0.0
#     HardSigmoid of NaN: onnxruntime nan  openvino 1.0
#     Sigmoid     of NaN: onnxruntime nan  openvino nan
#     MaxPool     of NaN: onnxruntime 1.0  openvino 1.0
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

versions = {module.__name__: module.__version__ for module in (onnx, onnxruntime, openvino, np)}
print(versions, "Python", platform.python_version())


def outputs(operation, **attributes):
    """The first output for an image that begins with NaN, by ONNX Runtime and by OpenVINO."""
    bounds = [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6))]
    extra = bounds if operation == "Clip" else []
    node = helper.make_node(operation, ["x", *(bound.name for bound in extra)], ["y"], **attributes)
    size = 2 if operation == "MaxPool" else 4
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, side, side])
        for name, side in (("x", 4), ("y", size))
    ]
    graph = helper.make_graph([node], "one", values[:1], values[1:], extra)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    image = np.ones((1, 1, 4, 4), np.float32)
    image[0, 0, 0, 0] = np.nan
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    compiled = openvino.compile_model(openvino.Core().read_model(content), "CPU")
    found = session.run(None, {"x": image})[0], compiled(image)[0]
    return tuple(str(result.flat[0]) for result in found)


seen = {name: outputs(name) for name in ("Relu", "Clip", "HardSigmoid", "Sigmoid")}
seen["MaxPool"] = outputs("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
for name, (ort, vino) in seen.items():
    print(f"{name:11} of NaN: onnxruntime {ort:4} openvino {vino}")
assert seen == {
    "Relu": ("nan", "0.0"),
    "Clip": ("nan", "0.0"),
    "HardSigmoid": ("nan", "1.0"),
    "Sigmoid": ("nan", "nan"),
    "MaxPool": ("1.0", "1.0"),
}, "the behaviour has changed"
PY
