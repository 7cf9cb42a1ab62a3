"""An average of a sparse model's weights over training, by the present masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from sparsefx.masking.masks import apply_masks, bare
from sparsefx.masking.packing import unpack_all

_Average = Callable[[Tensor, Tensor, Any], Tensor]
_AverageAll = Callable[[Any, Any, Any], None]


@dataclass(frozen=True)
class _AverageFloat:
    """A function of averaging for one tensor that takes over what is not of floating point."""

    average: _Average

    def __call__(self, averaged: Tensor, current: Tensor, count: Any) -> Tensor:
        is_number = averaged.is_floating_point() or averaged.is_complex()
        return self.average(averaged, current, count) if is_number else current


@dataclass(frozen=True)
class _AverageFloats:
    """The same for lists of tensors of one dtype."""

    average: _AverageAll

    def __call__(self, averaged: Any, current: Any, count: Any) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            self.average(averaged, current, count)
        else:
            for one, other in zip(averaged, current, strict=True):
                one.copy_(other)


class AveragedModel(swa_utils.AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` for a sparse model: weights are averaged, masks are copied.

    After every update the average has the masks that the model has then, and is 0 outside them, so it can
    be evaluated, exported and saved at any time. torch's own mixes the weights of several masks, and with
    ``use_buffers=True`` makes its masks the union of all. Everything else is torch's: arguments, functions
    of averaging, state dict, ``update_bn``. Buffers that are not of floating point are copied, too.

    Args:
        model: a sparsified model; it is copied.
        device: where the average is kept; by default where the model is.
        avg_fn: ``(averaged, current, num_averaged)`` to the new average of a tensor; by default the mean
            (SWA, Izmailov et al. 2018).
        multi_avg_fn: the same in place for lists of tensors, such as
            ``torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)`` for an exponential moving average.
        use_buffers: average buffers of floating point, too, such as the statistics of BatchNorm.

    Example:
        >>> import torch, sparsefx
        >>> model = sparsefx.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 8)), density=0.25)
        >>> ema = sparsefx.AveragedModel(
        ...     model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        ... )
        >>> for _ in range(2):  # after each step of the optimizer
        ...     ema.update_parameters(model)
        >>> sparsefx.report(ema.module).layers[0].nonzeros
        16
    """

    def __init__(
        self,
        model: nn.Module,
        device: int | torch.device | None = None,
        avg_fn: _Average | None = None,
        multi_avg_fn: _AverageAll | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__(model, device, avg_fn, multi_avg_fn, use_buffers)
        average_by_masks(self)

    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's weights into the average, and take over its masks."""
        for one in (self.module, model):  # of different positions, maybe
            unpack_all(bare(one))
        super().update_parameters(model)
        apply_masks(self.module, like=model)


def average_by_masks(average: swa_utils.AveragedModel) -> None:
    """Make torch's average an :class:`AveragedModel`, in place, whatever made it."""
    average.__class__ = AveragedModel
    if average.multi_avg_fn is not None:
        average.multi_avg_fn = _AverageFloats(average.multi_avg_fn)
    elif average.use_buffers or average.avg_fn is not None:
        average.avg_fn = _AverageFloat(average.avg_fn or swa_utils.get_swa_avg_fn())
