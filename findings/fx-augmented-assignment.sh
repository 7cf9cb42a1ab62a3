#!/usr/bin/env bash
# torch.fx records `h += f(h)` as `h = h + f(h)`: an alias of h keeps the old values in the traced
# model and has the new ones in the original. No warning or error is given, since Proxy has no
# __iadd__ and Python then falls back on __add__. `h.add_(f(h))` is recorded in place.
#
# Seen:
#
#     torch 2.14.1+cu130 Python 3.11.7
#     +=    original [2.0, 4.0] traced [1.0, 2.0]
#     add_  original [2.0, 4.0] traced [2.0, 4.0]
#     def forward(self, x : torch.Tensor) -> torch.Tensor:
#         mul = x * 1;  x = None
#         relu = mul.relu()
#         add = mul + relu;  relu = add = None
#         return mul
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" torch==2.14.1 || exit 2
PYTHONPATH="$folder" python3 - <<'PY'
import platform

import torch
from torch import fx, nn


class Residual(nn.Module):
    def __init__(self, in_place: str) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x * 1
        skip = hidden
        if self.in_place == "+=":
            hidden += hidden.relu()
        else:
            hidden.add_(hidden.relu())
        return skip


print("torch", torch.__version__, "Python", platform.python_version())
x = torch.tensor([1.0, 2.0])
seen = {}
for way in ("+=", "add_"):
    model = Residual(way)
    traced = fx.symbolic_trace(model)
    seen[way] = model(x).tolist(), traced(x).tolist()
    print(f"{way:5} original {seen[way][0]} traced {seen[way][1]}")
print(fx.symbolic_trace(Residual("+=")).code.strip())
assert seen["+="] == ([2.0, 4.0], [1.0, 2.0]), "the behaviour has changed"
assert seen["add_"] == ([2.0, 4.0], [2.0, 4.0]), "the behaviour has changed"
PY
