"""A masked weight: a parameter, a bool buffer of its shape beside it, and the invariant that ties them.

The invariant: the weight is exactly 0 wherever its mask is False. It is kept by whoever changes
weights or masks, never by the forward pass, which is therefore the plain layer's.

Masks belong to modules, not to a particular layer class: a module that holds a masked parameter
records it in ``_masked_parameters`` (parameter name -> buffer name). The masked layers of
:mod:`sparsefx.masking.layers` and modules that use a parameter through ``F.linear`` or ``F.conv2d`` are
handled alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError, CheckpointError, InvariantError, SparseFxError
from sparsefx.masking.packing import dense_weight, detach_packings
from sparsefx.masking.sharding import (
    count_true,
    gather_back,
    is_sharded,
    local,
    local_like,
    placed_alike,
    shard_like,
)

_RECORD = "_masked_parameters"
_REMEDY = "masks are copied, not averaged: sparsefx.apply_masks(average, like=model)"
_WITHOUT = "average the weights alone, and leave the masks out of the state dict or take those of one model"
_HOLLOW = "_masks_without_values"  # made on the meta device, which to_empty() and the like fill with anything
_HOLDERS: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # that hold a masked parameter, of all models
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class MaskedWeight:
    """One masked parameter of a model, under every module that holds it.

    Attributes:
        name: the layer's name; for a parameter not called ``weight``, ``<module>.<parameter>``.
        holders: each (module, parameter name, mask buffer name) that holds this parameter. Tied
            weights have several holders and one mask.
    """

    name: str
    holders: tuple[tuple[nn.Module, str, str], ...]

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, shape ``S``; a packed one is unpacked, until the next forward pass."""
        module, parameter, _ = self.holders[0]
        return dense_weight(module, parameter)

    @property
    def mask(self) -> Tensor:
        """The bool mask, shape ``S``: True where the weight is active.

        Raises:
            InvariantError: the buffer was given other values than 0 and 1, as an average of masks has.
        """
        module, _, mask = self.holders[0]
        return _as_bool(module.get_buffer(mask), f"the mask of {self.name}", InvariantError, _REMEDY)

    @property
    def density(self) -> float:
        """Fraction of active positions, in [0, 1]. Collective for a sharded weight; ask on every rank."""
        return count_true(self.mask) / self.mask.numel()

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Write a new mask (bool, shape ``S`` or that of this process's block) and zero what it excludes."""
        if mask.shape == self.weight.shape:
            mask = local_like(mask, self.weight)
        for module, _, name in self.holders:
            local(module.get_buffer(name)).copy_(mask)
            _has_values(module, name)
        self.enforce()

    @torch.no_grad()
    def shard_mask(self) -> None:
        """Hold the mask as bools, sharded as the weight is; no process learns anything from another."""
        weight, mask = self.weight, self.mask
        if not placed_alike(mask, weight):
            mask = shard_like(local_like(mask, weight).clone(), weight)
        for module, _, name in self.holders:
            if module._buffers[name] is not mask:
                module._buffers[name] = mask

    @torch.no_grad()
    def enforce(self) -> None:
        """Zero the weights outside the mask."""
        zero_outside(self.weight, self.mask)

    @torch.no_grad()
    def is_enforced(self) -> bool:
        """Whether the invariant holds (NaN outside the mask breaks it too)."""
        return not bool((local(self.weight).masked_fill(local(self.mask), 0) != 0).any())


def masked_weights(model: nn.Module) -> list[MaskedWeight]:
    """Every masked weight of a model, in the order of its modules, tied weights once.

    Names are those of the bare model: prefixes added by ``torch.compile`` and
    ``DistributedDataParallel`` are removed.

    Raises:
        ArgumentError: a weight is a parameter no longer since it was masked.
    """
    names: dict[int, str] = {}
    holders: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for path, module in bare(model).named_modules():
        for parameter, mask in module.__dict__.get(_RECORD, {}).items():
            key = id(_masked_parameter(module, parameter, path))
            names.setdefault(key, _layer_name(path, parameter))
            holders.setdefault(key, []).append((module, parameter, mask))
    return [MaskedWeight(names[key], tuple(held)) for key, held in holders.items()]


def _masked_parameter(module: nn.Module, name: str, path: str) -> nn.Parameter:
    parameter = module._parameters.get(name)
    if parameter is None:
        raise ArgumentError(
            f"{_layer_name(path, name)} was masked and its {name!r} is a parameter no longer; weight_norm, "
            "spectral_norm, parametrizations and torch.nn.utils.prune take weights apart: do without them, "
            "or do so before sparsify, which keeps such layers dense"
        )
    return parameter


def mask_names(model: nn.Module) -> list[str]:
    """The names of all mask buffers of a model, tied ones under each of their names."""
    return [
        f"{path}.{mask}".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        for mask in module.__dict__.get(_RECORD, {}).values()
    ]


def attach_mask(module: nn.Module, parameter: str, mask: Tensor) -> None:
    """Give one parameter of a module a mask and zero what it excludes.

    The buffer is called ``mask`` for ``weight`` and ``<parameter>_mask`` otherwise.

    Args:
        module: the module that holds the parameter.
        parameter: the parameter's name in ``module``.
        mask: bool tensor of the parameter's shape.
    """
    buffer = "mask" if parameter == "weight" and not hasattr(module, "mask") else f"{parameter}_mask"
    module.register_buffer(buffer, mask)
    if mask.is_meta:
        module.__dict__.setdefault(_HOLLOW, set()).add(buffer)
    record = module.__dict__.setdefault(_RECORD, {})
    if not record:
        module.register_load_state_dict_pre_hook(_mask_incoming)
    record[parameter] = buffer
    remember(module)
    with torch.no_grad():
        zero_outside(module.get_parameter(parameter), mask)


def expect_all_masks(model: nn.Module) -> None:
    """Have ``load_state_dict`` of a model report masks that are missing, before any mask is attached."""
    model.register_load_state_dict_pre_hook(_complete_masks)


def detach_masks(module: nn.Module) -> None:
    """Remove the masks of one module (not of its children); its weights stay as they are."""
    detach_packings(module)
    for buffer in module.__dict__.pop(_RECORD, {}).values():
        delattr(module, buffer)
        _has_values(module, buffer)
    hooks = module._load_state_dict_pre_hooks
    ours = (_mask_incoming, _complete_masks)
    for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) in ours]:
        del hooks[key]


def remember(module: nn.Module) -> None:
    """Note that a module holds masks; copies and unpickled ones have to say so themselves."""
    _HOLDERS.add(module)


def is_masked_anywhere(weights: Iterable[Tensor]) -> list[str]:
    """Which of some parameters, of any shape, are masked in some model: their layers, by class and shape."""
    wanted = {id(weight) for weight in weights}
    return [
        f"a {type(module).__name__} {tuple(weight.shape)}"
        for module in list(_HOLDERS)
        for name in module.__dict__.get(_RECORD, {})
        if (weight := module._parameters.get(name)) is not None and id(weight) in wanted
    ]


def mask_of(module: nn.Module, parameter: str) -> Tensor:
    """The mask of a module's masked parameter, bool, of its shape; a layer may hold it by another name."""
    return module.get_buffer(module.__dict__[_RECORD][parameter])


def has_masks(module: nn.Module) -> bool:
    """Whether this very module (not its children) holds a masked parameter."""
    return bool(module.__dict__.get(_RECORD))


def apply_masks(model: nn.Module, *, like: nn.Module | None = None) -> None:
    """Restore the invariant: zero every weight where its mask is False.

    Call it after editing weights or masks in place; ``SparseMomentum`` and ``load_state_dict`` do
    so themselves.

    A copy whose weights are averaged over training keeps the masks of the time when it was copied, or
    averages them too. ``like`` gives it the present ones: call it before the copy is evaluated, exported
    or saved. :class:`sparsefx.AveragedModel` does so at every update.

    Args:
        model: the model whose weights are masked; also one wrapped by ``torch.compile``,
            DistributedDataParallel or ``AveragedModel``.
        like: the model that ``model`` is a copy of, whose masks it takes over; None keeps its own.

    Raises:
        ArgumentError: the masked weights of ``like`` are others, by number or shape.
        InvariantError: a mask of ``model`` (or of ``like``) holds other values than 0 and 1.

    Example:
        >>> import torch, sparsefx
        >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(4, 4)), density=0.5)
        >>> _ = torch.nn.init.normal_(model.get_parameter("0.weight"))
        >>> sparsefx.apply_masks(model)
        >>> int((model.get_parameter("0.weight") != 0).sum())
        8
    """
    layers = masked_weights(model)
    if like is not None:
        _copy_masks(layers, masked_weights(like))
    for masked in layers:
        masked.shard_mask()
        masked.enforce()


def _copy_masks(layers: list[MaskedWeight], like: list[MaskedWeight]) -> None:
    here, there = ([(one.name, tuple(one.weight.shape)) for one in held] for held in (layers, like))
    if [shape for _, shape in here] != [shape for _, shape in there]:
        differing = next(pair for pair in zip_longest(here, there) if not _alike(*pair))
        raise ArgumentError(
            f"like: its masked weights are not those of model: {differing[1]} instead of {differing[0]}; "
            "pass the model that this one was copied from"
        )
    for masked, followed in zip(layers, like, strict=True):
        masked.set_mask(followed.mask)


def _alike(one: tuple[str, tuple[int, ...]] | None, other: tuple[str, tuple[int, ...]] | None) -> bool:
    return one is not None and other is not None and one[1] == other[1]


def check_invariant(model: nn.Module) -> None:
    """Raise :class:`InvariantError`, naming the layers, where a weight is not 0 outside its mask."""
    broken = [masked.name for masked in masked_weights(model) if not masked.is_enforced()]
    if broken:
        raise InvariantError(
            f"weights are not zero where the mask is False in {', '.join(broken)}; "
            "call sparsefx.apply_masks(model) after editing weights or masks in place, or, if this is an "
            "average of another model's weights, sparsefx.apply_masks(average, like=that_model)"
        )


def check_values(layers: Iterable[MaskedWeight]) -> None:
    """Refuse masks that were made on the meta device and have no values.

    Raises:
        ArgumentError: some are; it names the layers.
    """
    hollow = [
        layer.name
        for layer in layers
        if all(name in module.__dict__.get(_HOLLOW, ()) for module, _, name in layer.holders)
    ]
    if hollow:
        raise ArgumentError(
            f"the masks of {', '.join(hollow)} were made on the meta device and were given no values; load "
            "the state dict of a model that was sparsified elsewhere, or call set_mask() of each of "
            "sparsefx.masked_weights(model)"
        )


def check_unsharded(model: nn.Module, verb: str) -> None:
    """Refuse a model whose weights are sharded over processes, on behalf of what needs full ones.

    Raises:
        ArgumentError: they are.
    """
    gather_back(bare(model))  # an evaluation may have left them gathered, but not for long
    sharded = [name for name, parameter in bare(model).named_parameters() if is_sharded(parameter)]
    if sharded:
        raise ArgumentError(
            f"{verb} needs full weights, but {sharded[0]} and {len(sharded) - 1} more are sharded over "
            "processes; load torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options="
            "StateDictOptions(full_state_dict=True)) into a sparsified model that is not"
        )


def zero_outside(weight: Tensor, mask: Tensor) -> None:
    """Set ``weight`` to 0 where ``mask`` (bool, same shape) is False, in place.

    The weight's bits are multiplied as integers by the mask's 0 or 1: half the time of any
    floating-point product or fill, exact where the mask is True, and NaN and infinity become 0 too.
    """
    weight, mask = local(weight), local(mask)
    integer = _INTEGER_OF_SIZE.get(weight.element_size())
    if integer is None:  # complex128
        weight.masked_fill_(~mask, 0)
        return
    weight.view(integer).mul_(mask.view(torch.int8))


def bare(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile`` and (Distributed)DataParallel, in whatever order they wrap it."""
    while True:  # each turn takes a wrapper off
        if "_orig_mod" in model._modules:  # torch.compile
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def _layer_name(path: str, parameter: str) -> str:
    return path if parameter == "weight" and path else f"{path}.{parameter}".lstrip(".")


def _mask_incoming(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Before a state dict is loaded: keep the present mask where it brings none, and mask its weight.

    A mask that comes without a weight that fits masks the present weight.

    ``state_dict`` is torch's own shallow copy, so the caller's is left alone, and with
    ``assign=True`` its tensors are too.
    """
    for parameter, buffer in _records(module):
        dense_weight(module, parameter)
        present = module.get_buffer(buffer)
        if prefix + buffer in state_dict:
            _has_values(module, buffer)
        mask = state_dict.setdefault(prefix + buffer, present)
        if not isinstance(mask, Tensor) or mask.shape != present.shape:
            mask = present  # torch refuses the other one
        elif mask is not present:
            mask = state_dict[prefix + buffer] = _as_bool(
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


def _as_bool(mask: Tensor, what: str, error: type[SparseFxError], remedy: str) -> Tensor:
    """A mask of 0 and 1 in any type as bools; one that is bool already is returned as it is."""
    if mask.dtype == torch.bool or mask.is_meta:
        return mask.to(torch.bool)
    values = local(mask)
    if bool(((values != 0) & (values != 1)).any()):
        raise error(f"{what} ({mask.dtype}) holds values that are neither 0 nor 1; {remedy}")
    return mask.to(torch.bool)


def _has_values(module: nn.Module, buffer: str) -> None:
    """Note that a mask was given values, or is gone."""
    module.__dict__.get(_HOLLOW, set()).discard(buffer)


def _records(module: nn.Module) -> Iterator[tuple[str, str]]:
    record: Mapping[str, str] = module.__dict__.get(_RECORD, {})
    yield from record.items()
