#!/usr/bin/env bash
# A parameter group added after a learning-rate scheduler was made has a different fate with each
# scheduler. CosineAnnealingLR anneals it, LinearLR warms it up to more than the rate that it was given
# (it multiplies the rate by the next factor over the last), and LambdaLR raises ValueError at its
# next step.
#
# Seen:
#
#     torch 2.14.1+cu130 Python 3.11.7
#     CosineAnnealingLR [0.5, 0.5]
#     LinearLR          [1.0, 10.0]
#     LambdaLR          zip() argument 2 is shorter than argument 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" torch==2.14.1 || exit 2
PYTHONPATH="$folder" python3 -W ignore - <<'PY'
import platform

import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers


def rates(make):
    """The rates of the first and the late group, both of 1, after five steps; or the error."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 1.0})
    try:
        for _ in range(5):
            optimizer.step()
            scheduler.step()
    except ValueError as error:
        return str(error)
    return [round(group["lr"], 3) for group in optimizer.param_groups]


print("torch", torch.__version__, "Python", platform.python_version())
seen = {
    "CosineAnnealingLR": rates(lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 10)),
    "LinearLR": rates(lambda optimizer: schedulers.LinearLR(optimizer, 0.1, total_iters=5)),
    "LambdaLR": rates(lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: 0.5)),
}
for name, found in seen.items():
    print(f"{name:17} {found}")
assert seen["CosineAnnealingLR"] == [0.5, 0.5], "the behaviour has changed"
assert seen["LinearLR"] == [1.0, 10.0], "the behaviour has changed"
assert "zip() argument 2 is shorter" in seen["LambdaLR"], "the behaviour has changed"
PY
