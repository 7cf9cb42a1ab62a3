"""What some methods keep beside each weight: values of inactive weights, signs, what was ever active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsefx.cycle import LayerOutcome, LayerState
from sparsefx.cycle.positions.select import magnitudes
from sparsefx.errors import ArgumentError
from sparsefx.masking.sharding import copy_like, count_true, divide_like, local
from sparsefx.optim.rules import Rules
from sparsefx.optim.weight_handles import Slot

_TINY = 1e-12  # "just above 0" of Bellec et al. 2018


class Companions:
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
    def begin(self, slots: Iterable[Slot], generator: torch.Generator) -> None:
        """Start from the model as it is, for layers that have not yet."""
        for slot in slots:
            if slot.masked.name in self._begun:
                continue
            self._begun.add(slot.masked.name)
            self._check_undivided(slot)
            name, mask = slot.masked.name, slot.mask
            if self._rules.signs:
                self._put("sign", slot, _signs(slot, generator))
            if self._rules.memory is not None:
                self._put("stored", slot, self._first_stored(slot, generator))
            if self._rules.memory == "backward":
                self._put("backward", slot, self._backward(slot, slot.values, mask))
            if self._rules.explores:
                self._put("explored", slot, mask.clone())
            if self._rules.new_weights == "initial":
                active = slot.values[mask].float()
                self.spreads[name] = float(active.std()) if active.numel() > 1 else 0.0

    def of(self, slot: Slot) -> dict[str, Tensor]:
        """What a layer's state shows of them."""
        kinds = ("stored", "backward", "sign", "explored")
        return {
            kind: self._get(kind, slot) for kind in kinds if slot.masked.name in self.tensors.get(kind, {})
        }

    @torch.no_grad()
    def recall(self, slots: Iterable[Slot]) -> None:
        """Before a step: the weights as they are stored."""
        for slot in slots:
            slot.values.copy_(self._get("stored", slot))

    @torch.no_grad()
    def keep(self, slots: Iterable[Slot]) -> None:
        """After a step: store what may have learnt; what else the step changed is undone."""
        for slot in slots:
            stored, weight = self._get("stored", slot), slot.values
            learning = self.learning(slot)
            stored.copy_(weight if learning is None else torch.where(learning, weight, stored))
            if self._rules.least is not None:  # of what has the wrong sign
                sign = self._get("sign", slot)
                stored.mul_(sign).clamp_(min=self._rules.least).mul_(sign)

    def learning(self, slot: Slot) -> Tensor | None:
        """Which weights learn, bool: by the memory, or else the active ones. None: all."""
        if self._rules.memory == "all":
            return None
        return self._get("backward", slot) if self._rules.memory == "backward" else slot.mask

    @torch.no_grad()
    def renew(self, slot: Slot, outcome: LayerOutcome, generator: torch.Generator) -> None:
        """After an update: give new weights their values, before what is outside the mask is zeroed."""
        name, weight = slot.masked.name, slot.values
        if self._rules.memory is not None:
            stored = self._get("stored", slot)
            weight.copy_(stored)
            if self._rules.memory == "backward":
                self._put("backward", slot, self._backward(slot, stored, outcome.mask))
        else:
            weight.masked_fill_(outcome.grown, 0)
        if self._rules.new_weights == "initial":
            drawn = torch.randn(int(outcome.grown.sum()), generator=generator) * self.spreads[name]
            weight[outcome.grown] = drawn.to(weight.device, weight.dtype)
        elif self._rules.new_weights == "sign":
            weight.copy_(torch.where(outcome.grown, self._get("sign", slot) * _TINY, weight))
        if self._rules.explores:
            self._get("explored", slot).logical_or_(outcome.mask)

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

    def load(self, state: Mapping[str, Any], slots: Iterable[Slot]) -> None:
        """Take over a :meth:`state`."""
        weights = {slot.masked.name: slot.weight for slot in slots}
        self.tensors = {
            kind: {name: copy_like(tensor, weights[name]) for name, tensor in by_name.items()}
            for kind, by_name in state["tensors"].items()
        }
        self.spreads = dict(state["spreads"])
        self._begun = set(weights)

    def _put(self, kind: str, slot: Slot, values: Tensor) -> None:
        self.tensors.setdefault(kind, {})[slot.masked.name] = divide_like(values, slot.weight)

    def _get(self, kind: str, slot: Slot) -> Tensor:
        """This process's part of a tensor, on its weight's device, and of its type if it has its values."""
        by_name, name, weight = self.tensors[kind], slot.masked.name, slot.weight
        dtype = weight.dtype if kind == "stored" else by_name[name].dtype
        if by_name[name].device != weight.device or by_name[name].dtype != dtype:
            by_name[name] = by_name[name].to(weight.device, dtype)
        values: Tensor = local(by_name[name])
        return values

    def _check_undivided(self, slot: Slot) -> None:
        if slot.block is not None and (self._rules.signs or self._rules.new_weights == "initial"):
            raise ArgumentError(
                f"the method draws a random number for each weight, and those of {slot.masked.name} are "
                "divided among processes; choose a method without signs and with new_weights='zero', or "
                "train with DistributedDataParallel"
            )

    def _first_stored(self, slot: Slot, generator: torch.Generator) -> Tensor:
        """The weight; inactive weights with a lower bound start anywhere between it and 0."""
        stored = slot.values.clone()
        if self._rules.least is None:
            return stored
        depth = (
            torch.rand(stored.shape, generator=generator).to(stored.device, stored.dtype) * self._rules.least
        )
        return torch.where(slot.mask, stored, depth * self._get("sign", slot))

    def _backward(self, slot: Slot, stored: Tensor, mask: Tensor) -> Tensor:
        """The largest of the stored weights, by so many more than are active."""
        layer = LayerState(slot.masked.name, stored, mask, block=slot.block)
        count = min(layer.numel, layer.active + round(self._rules.backward * layer.numel))
        return layer.select_largest(magnitudes(stored), torch.ones_like(mask), count) | mask


def _signs(slot: Slot, generator: torch.Generator) -> Tensor:
    """The signs of active weights, and random ones elsewhere."""
    weight, mask = slot.values, slot.mask
    drawn = (torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1).to(weight.device, torch.int8)
    return torch.where(mask & (weight != 0), weight.sign().to(torch.int8), drawn)
