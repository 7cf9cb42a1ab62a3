"""Weights as they should not be: set outside their masks by somebody else, or not finite any more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from sparsefx.masking.sharding import local
from sparsefx.optim.weights.weight_handles import WeightHandle

_STEPS = 16  # Lookahead goes back after 5 or 6 steps, and to other masks only after these have changed


class ChangesBetweenSteps:
    """Says once that weights outside their masks were not 0 when a step began.

    To look at every weight before every step would cost as much as masking them. So it looks at those that
    were written to, as far as torch counts that, and at all in the first steps after masks have changed.
    """

    def __init__(self) -> None:
        self._versions: list[int] = []
        self._left = 0
        self._said = False

    def masks_have_changed(self) -> None:
        """Look at all weights in the next steps."""
        self._left = _STEPS

    def end_step(self, handles: Sequence[WeightHandle]) -> None:
        """Remember the weights as they are now, masked."""
        self._versions = [_version(handle) for handle in handles]

    def begin_step(self, handles: Sequence[WeightHandle]) -> None:
        """Look at the weights as they have come.

        Warns:
            UserWarning: some are not 0 outside their masks; the forward pass has seen them.
        """
        if self._said or len(self._versions) != len(handles):
            return
        written = [h for h, v in zip(handles, self._versions, strict=True) if self._left or _version(h) != v]
        self._left = max(0, self._left - 1)
        broken = [handle.masked.name for handle in written if not _is_masked(handle)]
        if broken:
            self._said = True
            warnings.warn(
                f"weights of {broken[0]} and {len(broken) - 1} more layers were set outside their masks "
                "since the last step, and the model has computed with them. Optimizers that change weights, "
                "such as Lookahead, go inside: SparseMomentum(Lookahead(sgd), model); after your own edits "
                "call sparsefx.apply_masks(model)",
                stacklevel=4,
            )


def warn_if_diverged(handles: Sequence[WeightHandle]) -> None:
    """Say which weights are not finite: training has diverged, and masks no longer mean anything.

    Warns:
        UserWarning: there are such.
    """
    # A finite sum has finite terms; one that is not may only be large.
    broken = [
        handle.masked.name
        for handle in handles
        if not bool(handle.values.sum().isfinite()) and not bool(handle.values.isfinite().all())
    ]
    if broken:
        warnings.warn(
            f"weights of {broken[0]} and {len(broken) - 1} more layers are not finite: training has "
            "diverged. Begin again with a lower or warmed-up learning rate, clipped gradients or a lower "
            "prune_rate",
            stacklevel=3,
        )


def _version(handle: WeightHandle) -> int:
    return -1 if handle.is_packed else int(local(handle.weight)._version)


@torch.no_grad()
def _is_masked(handle: WeightHandle) -> bool:
    return handle.is_packed or not bool((handle.values.masked_fill(handle.mask, 0) != 0).any())
