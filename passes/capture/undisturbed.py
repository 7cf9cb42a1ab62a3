"""Work on a model that leaves no trace in the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from sparsefx.passes.capture.module_tracer import restore_rng, rng_state


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave inference mode and autocast, whose results differ, and restore the random state afterwards."""
    devices = list(range(torch.cuda.device_count()))
    types = ["cpu", *(["cuda"] if devices else [])]
    state = rng_state()
    with ExitStack() as stack:
        stack.callback(restore_rng, state)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.inference_mode(False))
        for kind in types:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Restore the mode of each of a model's modules afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
