#!/usr/bin/env bash
# A graph that calls operator.iadd on a number runs otherwise as code than node by node: fx writes the
# call as the statement `size += 1`, which also changes the name of the operand that later nodes
# read. fx.Interpreter calls the function, and the operand stays what it was. The same holds for
# every augmented assignment and every operand that Python cannot change in place, tuples included.
#
# Seen:
#
#     torch 2.14.1+cu130 Python 3.11.7
#     def forward(self, x):
#         size = x.size(0);  x = None
#         size += 1;  iadd = size
#         return (size, iadd)
#     compiled (4, 4) interpreted (3, 4)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" torch==2.14.1 || exit 2
PYTHONPATH="$folder" python3 - <<'PY'
import operator
import platform

import torch
from torch import fx

print("torch", torch.__version__, "Python", platform.python_version())
graph = fx.Graph()
x = graph.placeholder("x")
size = graph.call_method("size", (x, 0))
more = graph.call_function(operator.iadd, (size, 1))
graph.output((size, more))
module = fx.GraphModule(torch.nn.Module(), graph)
compiled, interpreted = module(torch.zeros(3)), fx.Interpreter(module).run(torch.zeros(3))
print(module.code.strip())
print("compiled", compiled, "interpreted", interpreted)
assert (compiled, interpreted) == ((4, 4), (3, 4)), "the behaviour has changed"
PY
