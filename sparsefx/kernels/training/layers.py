"""The layers of a region as they are at a step: weights packed or not, statistics of the batch or running."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsefx.kernels.ir.program import DHW
from sparsefx.kernels.training.forms import LayerState, NormState, as_int32
from sparsefx.kernels.training.patterns import Pattern
from sparsefx.kernels.training.program import SparseConvolution
from sparsefx.masking.packing import packing_of


class ConvolutionLayer:
    """A layer with a weight, and what is computed once for the places of its nonzeros, until these change.

    Args:
        module: the layer; it may be masked or not.
        item: its convolution.

    Attributes:
        module: the layer.
        item: its convolution.
    """

    def __init__(self, module: nn.Module, item: SparseConvolution) -> None:
        self.module, self.item = module, item
        self._version: Any = None
        self._positions = torch.empty(0, dtype=torch.int64, device="cpu")
        self._patterns: dict[tuple[DHW, bool], Pattern] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "item": self.item}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"], state["item"])  # type: ignore[misc]

    @property
    def tensors(self) -> list[Tensor]:
        """Its weight, ``[active]`` or ``[out, in / groups, *kernel]``, and its bias ``[out]``, if any."""
        bias = self.module.bias
        weight: Any = self.module.weight  # a plain tensor where functional_call has put one
        return [weight, *([bias] if isinstance(bias, Tensor) else [])]

    def pack(self) -> bool:
        """Pack the weight, if it is masked and shall not stay dense; whether it was dense until now."""
        packing = packing_of(self.module)
        if packing is None:
            return False
        if packing.hold_dense:
            packing.follow_mask()
            return False
        was_dense = not packing.is_packed
        packing.pack()
        return was_dense

    def unpack(self) -> None:
        """Let the weight be dense."""
        packing = packing_of(self.module)
        if packing is not None:
            packing.unpack()

    def version(self) -> Any:
        """What the places of the nonzeros are known by."""
        packing = packing_of(self.module)
        if packing is None:
            version: Any = "dense"
            if self._version != version:
                self._set(torch.arange(self.tensors[0].numel(), device="cpu"), version)
            return version, False
        if self._version != packing.version:
            self._set(packing.positions, packing.version)
        return packing.version, packing.is_packed

    def _set(self, positions: Tensor, version: Any) -> None:
        self._version, self._positions, self._patterns = version, positions, {}

    def state(self, size: DHW, trained: bool, bias_trained: bool) -> LayerState:
        """As it is now, for inputs of this size."""
        packing = packing_of(self.module)
        dense = packing is not None and not packing.is_packed
        every = self._pattern(size, every=True) if dense and trained else None
        positions = as_int32(self._positions.numpy()) if dense else None
        return LayerState(self._pattern(size, every=False), every, positions, trained, bias_trained)

    def _pattern(self, size: DHW, every: bool) -> Pattern:
        key = size, every
        if key not in self._patterns:
            item = self.item.flattened
            size = (1, 1, 1) if self.item.whole else size
            count = item.out_channels * item.in_channels // item.groups * int(np.prod(item.kernel))
            self._patterns[key] = Pattern(
                item, size, torch.arange(count, device="cpu") if every else self._positions
            )
        return self._patterns[key]


class NormalisationLayer:
    """A BatchNorm.

    Args:
        module: the layer.
    """

    def __init__(self, module: _BatchNorm) -> None:
        self.module = module

    @property
    def tensors(self) -> list[Tensor]:
        """Its weight and bias ``[C]``, if it has them."""
        return [tensor for tensor in (self.module.weight, self.module.bias) if tensor is not None]

    @property
    def statistics(self) -> list[Tensor]:
        """Its running mean and variance ``[C]``, if it has them."""
        found = (self.module.running_mean, self.module.running_var)
        return [tensor for tensor in found if tensor is not None]

    @property
    def state(self) -> NormState:
        """As it is now."""
        training = self.module.training or self.module.running_mean is None
        updated = (
            self.module.training and self.module.track_running_stats and self.module.running_mean is not None
        )
        return NormState(training, updated)

    def count(self) -> Tensor:
        """Count a batch; the share ``[1]`` that it has in the running statistics."""
        module = self.module
        if self.state.updated and module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
        momentum = module.momentum
        if momentum is None:
            momentum = 1.0 / max(1.0, float(module.num_batches_tracked or 1))
        return torch.tensor([momentum], dtype=torch.float32, device="cpu")
