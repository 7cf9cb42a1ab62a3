#!/usr/bin/env bash
# torch.nn.utils.prune registers the parameter anew, behind its module's other parameters, and
# prune.remove leaves it there. Optimizers store their state by position: a checkpoint from before then
# gives the weight's momentum to the bias and the bias's to the weight. Where the shapes are equal, as in
# BatchNorm, nothing is said.
#
# Seen:
#
#     torch 2.14.1+cu130 Python 3.11.7
#     order before ['weight', 'bias'] after ['bias', 'weight']
#     gradients were weight 1, bias 2; momentum after loading {'bias': [1.0, 1.0, 1.0], 'weight': [2.0, 2.0, 2.0]}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" torch==2.14.1 || exit 2
PYTHONPATH="$folder" python3 - <<'PY'
import platform

import torch
from torch import nn
from torch.nn.utils import prune


def names(module):
    return [name for name, _ in module.named_parameters()]


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


print("torch", torch.__version__, "Python", platform.python_version())
before = nn.BatchNorm1d(3)
optimizer = sgd(before)
before.weight.grad, before.bias.grad = torch.full((3,), 1.0), torch.full((3,), 2.0)
optimizer.step()

after = nn.BatchNorm1d(3)
prune.l1_unstructured(after, "weight", amount=1)
prune.remove(after, "weight")
after.load_state_dict(before.state_dict())
resumed = sgd(after)
resumed.load_state_dict(optimizer.state_dict())
momentum = {name: resumed.state[value]["momentum_buffer"].tolist() for name, value in after.named_parameters()}
print("order before", names(before), "after", names(after))
print("gradients were weight 1, bias 2; momentum after loading", momentum)
assert names(after) == ["bias", "weight"], "the behaviour has changed"
assert momentum == {"bias": [1.0] * 3, "weight": [2.0] * 3}, "the behaviour has changed"
PY
