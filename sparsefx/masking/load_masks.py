"""``load_state_dict`` of a masked model: masks that come or are missing, and the invariant after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import CheckpointError
from sparsefx.masking.mask_record import has_values, mask_names, records
from sparsefx.masking.mask_values import as_bool, zero_outside
from sparsefx.masking.packing import dense_weight
from sparsefx.masking.sharding import local, local_like, shard_like

_WITHOUT = "average the weights alone, and leave the masks out of the state dict or take those of one model"


def watch_loading(module: nn.Module) -> None:
    """Keep the invariant of a module's weights when a state dict is loaded."""
    module.register_load_state_dict_pre_hook(_mask_incoming)


def expect_all_masks(model: nn.Module) -> None:
    """Have ``load_state_dict`` of a model report masks that are missing, before any mask is attached."""
    model.register_load_state_dict_pre_hook(_complete_masks)


def forget_loading(module: nn.Module) -> None:
    """Undo both for a module."""
    hooks = module._load_state_dict_pre_hooks
    ours = (_mask_incoming, _complete_masks)
    for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) in ours]:
        del hooks[key]


def _mask_incoming(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Before a state dict is loaded: keep the present mask where it brings none, and mask its weight.

    A mask that comes without a weight that fits masks the present weight.

    ``state_dict`` is torch's own shallow copy, so the caller's is left alone, and with
    ``assign=True`` its tensors are too.
    """
    for parameter, buffer in records(module):
        dense_weight(module, parameter)
        present = module.get_buffer(buffer)
        if prefix + buffer in state_dict:
            has_values(module, buffer)
        mask = state_dict.setdefault(prefix + buffer, present)
        if not isinstance(mask, Tensor) or mask.shape != present.shape:
            mask = present  # torch refuses the other one
        elif mask is not present:
            mask = state_dict[prefix + buffer] = as_bool(
                mask, f"state_dict[{prefix + buffer!r}]", CheckpointError, _WITHOUT
            )
        weight = state_dict.get(prefix + parameter)
        if isinstance(weight, Tensor) and weight.shape == mask.shape:
            inactive = ~local_like(mask, weight).to(device=weight.device, dtype=torch.bool)
            masked = local(weight.detach()).masked_fill(inactive, 0)
            state_dict[prefix + parameter] = shard_like(masked, weight)
        else:
            with torch.no_grad():
                held = module.get_parameter(parameter)
                zero_outside(held, local_like(mask, held).to(present.device, torch.bool))


def _complete_masks(
    model: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    metadata: object,
    strict: bool,
    missing_keys: list[str],
    *_: object,
) -> None:
    """Before a state dict is loaded: report the masks that it lacks, unless it is a dense one, without any.

    A tied mask that is there under one of its names is reported by the others, too, as torch does of a tied
    weight: safetensors, which saves one of the names, counts on it. All of them take its values.
    """
    names = {f"{prefix}{name}": id(model.get_buffer(name)) for name in mask_names(model)}
    given = {mask: name for name, mask in names.items() if name in state_dict}
    for name, mask in names.items() if given else ():
        if name not in state_dict:
            missing_keys.append(name)
            if mask in given:
                state_dict[name] = state_dict[given[mask]]
