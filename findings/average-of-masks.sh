#!/usr/bin/env bash
# AveragedModel(model, use_buffers=True) and a boolean buffer, such as a sparse layer's mask: the
# default average raises NotImplementedError at the second update, the exponential averages keep the
# union of all masks so far, and an integer buffer (BatchNorm's num_batches_tracked) lags behind because
# every average is truncated. ModelEmaV3 of timm copies what is not of a floating-point type.
#
# Seen:
#
#     torch 2.14.1+cu130 timm 1.0.31 Python 3.11.7
#     default    Subtraction
#     ema        ([1, 1, 0], 2)
#     ema, multi ([1, 1, 0], 2)
#     timm       ([0, 1, 0], 3)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" torch==2.14.1 timm==1.0.31 || exit 2
PYTHONPATH="$folder" python3 - <<'PY'
import platform

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("steps", torch.tensor(0))


def average(averaged, update):
    """The averaged mask and count after three steps, in which the mask is at 0, 1 and 1; or the error."""
    layer = Layer()
    model = averaged(layer)
    try:
        for position in (0, 1, 1):
            layer.mask.copy_(torch.arange(3) == position)
            layer.steps += 1
            update(model, layer)
    except NotImplementedError as error:
        return str(error).partition(",")[0]
    return model.module.mask.int().tolist(), model.module.steps.item()


def swa(**functions):
    return lambda layer: AveragedModel(layer, use_buffers=True, **functions)


print("torch", torch.__version__, "timm", timm.__version__, "Python", platform.python_version())
of_torch, of_timm = AveragedModel.update_parameters, ModelEmaV3.update
seen = {
    "default": average(swa(), of_torch),
    "ema": average(swa(avg_fn=get_ema_avg_fn(0.5)), of_torch),
    "ema, multi": average(swa(multi_avg_fn=get_ema_multi_avg_fn(0.5)), of_torch),
    "timm": average(lambda layer: ModelEmaV3(layer, decay=0.5), of_timm),
}
for name, result in seen.items():
    print(f"{name:10} {result}")
assert seen == {
    "default": "Subtraction",
    "ema": ([1, 1, 0], 2),
    "ema, multi": ([1, 1, 0], 2),
    "timm": ([0, 1, 0], 3),
}, "the behaviour has changed"
PY
