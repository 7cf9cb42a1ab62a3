#!/usr/bin/env bash
# openvino.save_model stores weights in float16, but a constant stays float32 as soon as more than three
# quarters of its elements are outside of float16's range. Masked zeros are inside. So weights of 1e-9
# all become 0 in a layer of half density, and all survive in the same layer at density 0.8.
#
# Seen:
#
#     openvino 2026.4.1-22982-e213a147257-releases/2026/4 numpy 2.4.6 Python 3.11.7
#     density 0.5: 5000 weights of 1e-9 saved, ('float16', 0) read
#     density 0.7: 7000 weights of 1e-9 saved, ('float16', 0) read
#     density 0.8: 8000 weights of 1e-9 saved, ('float32', 8000) read
#     density 1.0: 10000 weights of 1e-9 saved, ('float32', 10000) read
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" openvino==2026.4.1 numpy==2.4.6 || exit 2
PYTHONPATH="$folder" python3 - "$folder" <<'PY'
import platform
import sys

import numpy as np
import openvino as ov
from openvino import opset13 as ops

print("openvino", ov.__version__, "numpy", np.__version__, "Python", platform.python_version())
path = sys.argv[1] + "/model.xml"
seen = {}
for density in (0.5, 0.7, 0.8, 1.0):
    weight = np.zeros(10_000, np.float32)
    weight[: int(density * weight.size)] = 1e-9
    x = ops.parameter([1, 100], np.float32, name="x")
    ov.save_model(ov.Model([ops.matmul(x, weight.reshape(100, 100), False, False)], [x]), path)
    stored = [
        node.data
        for node in ov.Core().read_model(path).get_ops()
        if node.get_type_name() == "Constant" and node.data.size == weight.size
    ]
    seen[density] = stored[0].dtype.name, int(np.count_nonzero(stored[0]))
    print(f"density {density}: {np.count_nonzero(weight)} weights of 1e-9 saved, {seen[density]} read")
assert seen == {
    0.5: ("float16", 0),
    0.7: ("float16", 0),
    0.8: ("float32", 8000),
    1.0: ("float32", 10000),
}, "the behaviour has changed"
PY
