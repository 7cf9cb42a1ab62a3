"""Which masked weights of a model an optimizer trains, looked up again where others change either."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.masking.mask_record import is_masked_anywhere
from sparsefx.masking.masks import MaskedWeight, bare, masked_weights
from sparsefx.masking.sharding import gather_back
from sparsefx.optim.weights.weight_handles import WeightHandle


@dataclass(frozen=True, eq=False)
class TrainedWeights:
    """The masked weights that an optimizer holds, as they were at one look.

    Attributes:
        handles: of each weight that is in the optimizer.
        names: of all masked layers, frozen ones included.
        groups: the optimizer's lists of parameters, and how long each was.
    """

    handles: Sequence[WeightHandle] = ()
    names: frozenset[str] = frozenset()
    groups: Sequence[tuple[list[Tensor], int]] = ()

    def again(self, model: nn.Module, param_groups: Sequence[dict[str, Any]]) -> TrainedWeights:
        """Walk the model; between walks only what a handle looks up is followed.

        Raises:
            ArgumentError: the model has no masked weights, has lost some, or the optimizer lacks some that
                train.
        """
        found = self.find(model, param_groups)
        owned = _owned(param_groups)
        for masked in found:
            masked.shard_mask()
        return TrainedWeights(
            [WeightHandle.of(masked) for masked in found if id(masked.weight) in owned],
            frozenset(masked.name for masked in found),
            [(group["params"], len(group["params"])) for group in param_groups],
        )

    def are_of(self, param_groups: Sequence[dict[str, Any]]) -> bool:
        """Whether the optimizer's groups are still those of this look."""
        return len(self.groups) == len(param_groups) and all(
            group["params"] is params and len(params) == count
            for group, (params, count) in zip(param_groups, self.groups, strict=True)
        )

    def find(
        self, model: nn.Module, param_groups: Sequence[dict[str, Any]], added: Iterable[Tensor] = ()
    ) -> list[MaskedWeight]:
        """The model's masked weights, of which all that train are in the optimizer, or are to be added.

        Args:
            model: the model.
            param_groups: the groups of the optimizer.
            added: parameters, of any shape, that are about to be added.

        Raises:
            ArgumentError: as of :meth:`again`.
        """
        gather_back(bare(model))
        found = masked_weights(model)
        if not found:
            raise ArgumentError("model has no masked weights; pass it through sparsefx.sparsify first")
        self._check_still_there(found)
        added = list(added)
        owned = _owned(param_groups) | {id(weight) for weight in added}
        missing = [m.name for m in found if m.weight.requires_grad and id(m.weight) not in owned]
        if missing:
            raise ArgumentError(
                f"optimizer does not hold the masked weights of {', '.join(missing)}; build it from the "
                "sparsified model's parameters(), after fully_shard if that shards them, or freeze these "
                "layers with requires_grad_(False) until a group with them is added. Where another optimizer "
                "trains them, as AdamW beside Muon, wrap each optimizer around its own layers: "
                "SparseMomentum(muon, nn.ModuleList(layers_of_muon), ...)"
            )
        _check_no_others(found, param_groups, added)
        return found

    def _check_still_there(self, found: Sequence[MaskedWeight]) -> None:
        gone = self.names - {masked.name for masked in found}
        if gone:
            raise ArgumentError(
                f"the model has lost the masked layers {', '.join(sorted(gone))} since this optimizer was "
                "made: they were removed, or replaced by dense ones, as resize_token_embeddings does; change "
                "the network before sparsify, then make the optimizer"
            )


def _check_no_others(
    found: Sequence[MaskedWeight], param_groups: Sequence[dict[str, Any]], added: Iterable[Tensor]
) -> None:
    """Refuse masked weights of other models, which a step of the optimizer would leave unmasked."""
    own = {id(masked.weight) for masked in found}
    held = [*(weight for group in param_groups for weight in group["params"]), *added]
    others = is_masked_anywhere([weight for weight in held if weight.requires_grad and id(weight) not in own])
    if others:
        raise ArgumentError(
            f"optimizer also holds masked weights that are not in model ({others[0]} and "
            f"{len(others) - 1} more), which would not stay masked; give each model an optimizer of its own, "
            "or wrap it for all: SparseMomentum(optimizer, nn.ModuleList([one, other]), ...)"
        )


def _owned(param_groups: Sequence[dict[str, Any]]) -> set[int]:
    return {id(weight) for group in param_groups for weight in group["params"]}
