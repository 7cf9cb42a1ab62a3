"""What some methods keep beside each weight: values of inactive weights, signs, what was ever active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsefx.cycle import LayerOutcome, LayerState
from sparsefx.cycle.positions.select import magnitudes
from sparsefx.errors import ArgumentError
from sparsefx.masking.sharding import copy_like, count_true, local, shard_like
from sparsefx.optim.rules import Rules
from sparsefx.optim.weights.weight_handles import WeightHandle

_TINY = 1e-12  # "just above 0" of Bellec et al. 2018


class AuxiliaryTensors:
    """Tensors of the weights' shapes, by kind and layer; which kinds there are follows from the rules.

    Attributes:
        tensors: ``stored`` values, the ``backward`` set, ``sign`` and ``explored``, each by layer name.
        spreads: standard deviation of each layer's active weights at the beginning.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.spreads: dict[str, float] = {}
        self._begun: set[str] = set()

    @torch.no_grad()
    def begin(self, handles: Iterable[WeightHandle], generator: torch.Generator) -> None:
        """Start from the model as it is, for layers that have not yet."""
        for handle in handles:
            if handle.masked.name in self._begun:
                continue
            self._begun.add(handle.masked.name)
            self._check_unsharded(handle)
            name, mask = handle.masked.name, handle.mask
            if self._rules.signs:
                self._put("sign", handle, _signs(handle, generator))
            if self._rules.memory is not None:
                self._put("stored", handle, self._first_stored(handle, generator))
            if self._rules.memory == "backward":
                self._put("backward", handle, self._backward(handle, handle.values, mask))
            if self._rules.explores:
                self._put("explored", handle, mask.clone())
            if self._rules.new_weights == "initial":
                active = handle.values[mask].float()
                self.spreads[name] = float(active.std()) if active.numel() > 1 else 0.0

    def of(self, handle: WeightHandle) -> dict[str, Tensor]:
        """What a layer's state shows of them."""
        kinds = ("stored", "backward", "sign", "explored")
        return {
            kind: self._get(kind, handle)
            for kind in kinds
            if handle.masked.name in self.tensors.get(kind, {})
        }

    @torch.no_grad()
    def recall(self, handles: Iterable[WeightHandle]) -> None:
        """Before a step: the weights as they are stored."""
        for handle in handles:
            handle.values.copy_(self._get("stored", handle))

    @torch.no_grad()
    def keep(self, handles: Iterable[WeightHandle]) -> None:
        """After a step: store what may have learnt; what else the step changed is undone."""
        for handle in handles:
            stored, weight = self._get("stored", handle), handle.values
            learning = self.learning(handle)
            stored.copy_(weight if learning is None else torch.where(learning, weight, stored))
            if self._rules.least is not None:  # of what has the wrong sign
                sign = self._get("sign", handle)
                stored.mul_(sign).clamp_(min=self._rules.least).mul_(sign)

    def learning(self, handle: WeightHandle) -> Tensor | None:
        """Which weights learn, bool: by the memory, or else the active ones. None: all."""
        if self._rules.memory == "all":
            return None
        return self._get("backward", handle) if self._rules.memory == "backward" else handle.mask

    @torch.no_grad()
    def renew(self, handle: WeightHandle, outcome: LayerOutcome, generator: torch.Generator) -> None:
        """After an update: give new weights their values, before what is outside the mask is zeroed."""
        name, weight = handle.masked.name, handle.values
        if self._rules.memory is not None:
            stored = self._get("stored", handle)
            weight.copy_(stored)
            if self._rules.memory == "backward":
                self._put("backward", handle, self._backward(handle, stored, outcome.mask))
        else:
            weight.masked_fill_(outcome.grown, 0)
        if self._rules.new_weights == "initial":
            drawn = torch.randn(int(outcome.grown.sum()), generator=generator) * self.spreads[name]
            weight[outcome.grown] = drawn.to(weight.device, weight.dtype)
        elif self._rules.new_weights == "sign":
            weight.copy_(torch.where(outcome.grown, self._get("sign", handle) * _TINY, weight))
        if self._rules.explores:
            self._get("explored", handle).logical_or_(outcome.mask)

    def explored(self) -> float | None:
        """Fraction of all positions that were ever active; None if nobody keeps count."""
        if not self._rules.explores:
            return None
        found = self.tensors["explored"].values()
        return sum(map(count_true, found)) / max(1, sum(one.numel() for one in found))

    def state(self) -> dict[str, Any]:
        """All of it, as a state dict holds it."""
        return {
            "tensors": {kind: dict(by_name) for kind, by_name in self.tensors.items()},
            "spreads": dict(self.spreads),
        }

    def check(self, state: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
        """Refuse a state that these rules cannot go on with.

        Raises:
            ValueError: it has other kinds of tensors, or of other shapes.
        """
        kinds = {kind: by_name for kind, by_name in state["tensors"].items() if by_name}
        if kinds.keys() != self.tensors.keys() or bool(state["spreads"]) != bool(self.spreads):
            had, has = ", ".join(kinds) or "nothing", ", ".join(self.tensors) or "nothing"
            raise ValueError(
                f"it was saved by a method that keeps {had} beside weights, this one keeps {has}"
            )
        for kind, by_name in kinds.items():
            found = {name: list(tensor.shape) for name, tensor in by_name.items()}
            if found != dict(shapes):
                raise ValueError(f"its {kind} tensors are of other shapes")

    def load(self, state: Mapping[str, Any], handles: Iterable[WeightHandle]) -> None:
        """Take over a :meth:`state`."""
        weights = {handle.masked.name: handle.weight for handle in handles}
        self.tensors = {
            kind: {name: copy_like(tensor, weights[name]) for name, tensor in by_name.items()}
            for kind, by_name in state["tensors"].items()
        }
        self.spreads = dict(state["spreads"])
        self._begun = set(weights)

    def _put(self, kind: str, handle: WeightHandle, values: Tensor) -> None:
        self.tensors.setdefault(kind, {})[handle.masked.name] = shard_like(values, handle.weight)

    def _get(self, kind: str, handle: WeightHandle) -> Tensor:
        """This process's part of a tensor, on its weight's device, and of its type if it has its values."""
        by_name, name, weight = self.tensors[kind], handle.masked.name, handle.weight
        dtype = weight.dtype if kind == "stored" else by_name[name].dtype
        if by_name[name].device != weight.device or by_name[name].dtype != dtype:
            by_name[name] = by_name[name].to(weight.device, dtype)
        values: Tensor = local(by_name[name])
        return values

    def _check_unsharded(self, handle: WeightHandle) -> None:
        if handle.block is not None and (self._rules.signs or self._rules.new_weights == "initial"):
            raise ArgumentError(
                f"the method draws a random number for each weight, and those of {handle.masked.name} are "
                "sharded over processes; choose a method without signs and with new_weights='zero', or "
                "train with DistributedDataParallel"
            )

    def _first_stored(self, handle: WeightHandle, generator: torch.Generator) -> Tensor:
        """The weight; inactive weights with a lower bound start anywhere between it and 0."""
        stored = handle.values.clone()
        if self._rules.least is None:
            return stored
        depth = (
            torch.rand(stored.shape, generator=generator).to(stored.device, stored.dtype) * self._rules.least
        )
        return torch.where(handle.mask, stored, depth * self._get("sign", handle))

    def _backward(self, handle: WeightHandle, stored: Tensor, mask: Tensor) -> Tensor:
        """The largest of the stored weights, by so many more than are active."""
        layer = LayerState(handle.masked.name, stored, mask, block=handle.block)
        count = min(layer.numel, layer.active + round(self._rules.backward * layer.numel))
        return layer.select_largest(magnitudes(stored), torch.ones_like(mask), count) | mask


def _signs(handle: WeightHandle, generator: torch.Generator) -> Tensor:
    """The signs of active weights, and random ones elsewhere."""
    weight, mask = handle.values, handle.mask
    drawn = (torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1).to(weight.device, torch.int8)
    return torch.where(mask & (weight != 0), weight.sign().to(torch.int8), drawn)
