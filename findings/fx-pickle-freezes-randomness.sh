#!/usr/bin/env bash
# Pickling a torch.fx.GraphModule writes its source, and loading traces that source once more. What
# does not depend on an input then runs at that moment and becomes a constant: the random noise of a
# graph of make_fx is drawn once, at load, and is the same in every later call. copy.deepcopy keeps it.
#
# Seen:
#
#     torch 2.14.1+cu130 Python 3.11.7
#     recorded  two calls equal: False nodes: ['x_1', 'aten.rand.default', 'aten.add.Tensor']
#     deep copy two calls equal: False nodes: ['x_1', 'aten.rand.default', 'aten.add.Tensor']
#     loaded    two calls equal: True  nodes: ['x_1', '_tensor_constant0', 'aten.add.Tensor']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" torch==2.14.1 || exit 2
PYTHONPATH="$folder" python3 - <<'PY'
import copy
import io
import platform

import torch
from torch.fx.experimental.proxy_tensor import make_fx

print("torch", torch.__version__, "Python", platform.python_version())
x = torch.zeros(3)
recorded = make_fx(lambda x: x + torch.rand(3))(x)
file = io.BytesIO()
torch.save(recorded, file)
file.seek(0)
loaded = torch.load(file, weights_only=False)
seen = {}
for name, model in {"recorded": recorded, "deep copy": copy.deepcopy(recorded), "loaded": loaded}.items():
    targets = [str(node.target) for node in model.graph.nodes if node.op != "output"]
    seen[name] = torch.equal(model(x), model(x))
    print(f"{name:9} two calls equal: {seen[name]!s:5} nodes: {targets}")
assert seen == {"recorded": False, "deep copy": False, "loaded": True}, "the behaviour has changed"
PY
