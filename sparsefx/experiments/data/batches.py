"""Batches of a part of a data set: in what order, and from images that lie on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsefx.errors import ArgumentError
from sparsefx.experiments.data.augment import CropsAndFlips, crop_and_flip
from sparsefx.experiments.data.normalise import Normalisation

Batch = tuple[Tensor, Tensor]


class Split(Protocol):
    """A part of a data set: training, validation or test."""

    def __len__(self) -> int:
        """The number of samples."""

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        augment: bool = False,
        start: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """One epoch's batches: inputs (float32, normalised) and targets (int64) on the device.

        All random numbers of the epoch are drawn from ``generator`` before the first batch, so the
        batches from ``start`` on are the same whether or not those before it were made.

        Args:
            batch_size: samples a batch; the last one may have fewer.
            generator: shuffles, and draws the augmentation; without one the order is that of the data.
            augment: crop and flip at random; needs ``generator``.
            start: number of batches to skip.
            drop_last: leave out a last batch with fewer samples.

        Raises:
            ArgumentError: ``batch_size`` or ``start`` is out of range, or ``augment`` has no generator.
        """


@dataclass(frozen=True)
class TensorSplit:
    """Samples that lie in one tensor; what is random is done for a whole batch, where the tensor lies.

    Attributes:
        images: uint8, shape (N, C, H, W).
        targets: int64, shape (N,), on the same device.
        normalisation: of the inputs.
    """

    images: Tensor
    targets: Tensor
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        augment: bool = False,
        start: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """One epoch's batches; see :class:`Split`."""
        check_augment(augment, generator)
        slices = batch_slices(len(self), batch_size, start=start, drop_last=drop_last)
        return self._batches(slices, generator, augment)

    def _batches(
        self, slices: list[slice], generator: torch.Generator | None, augment: bool
    ) -> Iterator[Batch]:
        device = self.images.device
        normalise = self.normalisation.on(device)
        order, where = None, None
        if generator is not None:
            order = torch.randperm(len(self), generator=generator).to(device)
        if generator is not None and augment:
            where = CropsAndFlips.draw(len(self), generator).to(device)
        for positions in slices:
            images, targets = self._samples(positions, order)
            if where is not None:
                images = crop_and_flip(images, where[positions])
            yield normalise(images), targets

    def _samples(self, positions: slice, order: Tensor | None) -> Batch:
        """Images and targets at some positions of the order; of the data's own if there is none."""
        if order is None:
            return self.images[positions], self.targets[positions]
        # copies whole images, many times faster than indexing, which looks up every pixel
        return self.images.index_select(0, order[positions]), self.targets.index_select(0, order[positions])


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator for one epoch of one run: a pure function of both, unrelated between any two.

    Args:
        seed: the run's seed, at least 0.
        epoch: number of epochs done, at least 0.

    Raises:
        ArgumentError: ``seed`` or ``epoch`` is negative.
    """
    if seed < 0 or epoch < 0:
        raise ArgumentError(f"seed={seed!r} and epoch={epoch!r} must be at least 0")
    (state,) = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def batch_count(samples: int, batch_size: int, *, drop_last: bool = False) -> int:
    """The number of batches in an epoch.

    Raises:
        ArgumentError: ``batch_size`` is less than 1.

    Example:
        >>> batch_count(45_000, 128), batch_count(1_281_167, 256, drop_last=True)
        (352, 5004)
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size!r} must be at least 1")
    return samples // batch_size if drop_last else -(-samples // batch_size)


def batch_slices(samples: int, batch_size: int, *, start: int = 0, drop_last: bool = False) -> list[slice]:
    """The positions of each batch in the order of the epoch, from batch ``start`` on.

    Raises:
        ArgumentError: ``batch_size`` is less than 1, or ``start`` is outside the epoch.
    """
    count = batch_count(samples, batch_size, drop_last=drop_last)
    if not 0 <= start <= count:
        raise ArgumentError(f"start={start!r} is outside the epoch's {count} batches of {batch_size}")
    return [slice(i * batch_size, min((i + 1) * batch_size, samples)) for i in range(start, count)]


def check_augment(augment: bool, generator: torch.Generator | None) -> None:
    """Refuse augmentation without a source of random numbers.

    Raises:
        ArgumentError: ``augment`` is True and ``generator`` is None.
    """
    if augment and generator is None:
        raise ArgumentError("augment=True needs generator=, such as epoch_generator(seed, epoch)")
