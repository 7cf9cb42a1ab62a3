"""A masked weight: a parameter, a bool buffer of its shape beside it, and the invariant that ties them.

The invariant: the weight is exactly 0 wherever its mask is False. It is kept by whoever changes
weights or masks, never by the forward pass, which is therefore the plain layer's.

Masks belong to modules, not to a particular layer class: a module that holds a masked parameter
records it in ``_masked_parameters`` (parameter name -> buffer name). The masked layers of
:mod:`sparsefx.masking.layers` and modules that use a parameter through ``F.linear`` or ``F.conv2d`` are
handled alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError, InvariantError
from sparsefx.masking.load_masks import forget_loading, watch_loading
from sparsefx.masking.mask_record import HOLLOW, RECORD, has_values, remember
from sparsefx.masking.mask_values import as_bool, zero_outside
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

_REMEDY = "masks are copied, not averaged: sparsefx.apply_masks(average, like=model)"


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
        return as_bool(module.get_buffer(mask), f"the mask of {self.name}", InvariantError, _REMEDY)

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
            has_values(module, name)
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
        for parameter, mask in module.__dict__.get(RECORD, {}).items():
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
        module.__dict__.setdefault(HOLLOW, set()).add(buffer)
    record = module.__dict__.setdefault(RECORD, {})
    if not record:
        watch_loading(module)
    record[parameter] = buffer
    remember(module)
    with torch.no_grad():
        zero_outside(module.get_parameter(parameter), mask)


def detach_masks(module: nn.Module) -> None:
    """Remove the masks of one module (not of its children); its weights stay as they are."""
    detach_packings(module)
    for buffer in module.__dict__.pop(RECORD, {}).values():
        delattr(module, buffer)
        has_values(module, buffer)
    forget_loading(module)


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
        if all(name in module.__dict__.get(HOLLOW, ()) for module, _, name in layer.holders)
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
