"""ImageNet, which does not fit into memory: read by workers, normalised on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparsefx.experiments.data.batches import Batch, batch_slices, check_augment
from sparsefx.experiments.data.folder import check_same_classes
from sparsefx.experiments.data.images import missing, missing_package
from sparsefx.experiments.data.normalise import Normalisation

Sample = tuple[Tensor, int]


def imagenet_folders(
    root: Path, normalisation: Normalisation, device: torch.device, workers: int
) -> tuple[FolderSplit, FolderSplit, int]:
    """The training and test splits of ``train/<class>`` and ``val/<class>``, and the number of classes.

    The published validation images are the test split, as in every paper. Hidden files and folders, such as
    ``.ipynb_checkpoints`` and the ``._*`` of macOS, are left out.

    Raises:
        ArgumentError: there are no such folders, or a class has no images.
        MissingPackageError: torchvision is not installed.
    """
    if not ((root / "train").is_dir() and (root / "val").is_dir()):
        remedy = "the links on https://image-net.org/download.php, one folder a class in each"
        raise missing("ImageNet", root, ["train and val"], remedy)
    try:
        from sparsefx.experiments.data.image_folder import open_image_folder
    except ImportError as error:  # of torchvision
        raise missing_package("data='imagenet'", "torchvision") from error
    train, test = open_image_folder(root / "train"), open_image_folder(root / "val")
    check_same_classes(root, train.classes, test.classes, "train and val")
    splits = [FolderSplit(folder, normalisation, device, workers) for folder in (train, test)]
    return splits[0], splits[1], len(train.classes)


@dataclass(frozen=True)
class FolderSplit:
    """Images read from files for each batch, 224x224.

    Attributes:
        folder: a ``torchvision.datasets.ImageFolder`` without transforms.
        normalisation: of the inputs.
        device: where batches are put.
        workers: processes that read ahead; 0 reads in this one.
    """

    folder: Any
    normalisation: Normalisation
    device: torch.device
    workers: int

    def __len__(self) -> int:
        return len(self.folder)

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        augment: bool = False,
        start: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """One epoch's batches; see :class:`~sparsefx.experiments.data.batches.Split`.

        Augmented images are random crops of 8 to 100% of the area, resized, and flipped; others are
        resized to 256 and cropped in the middle (Szegedy et al. 2015; He et al. 2016).
        """
        check_augment(augment, generator)
        slices = batch_slices(len(self), batch_size, start=start, drop_last=drop_last)
        return self._batches(slices, generator, augment)

    def _batches(
        self, slices: list[slice], generator: torch.Generator | None, augment: bool
    ) -> Iterator[Batch]:
        order, seeds = torch.arange(len(self)), torch.zeros(len(self), dtype=torch.int64)
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
            seeds = torch.randint(2**62, (len(self),), generator=generator)
        pairs = (list(zip(order[p].tolist(), seeds[p].tolist(), strict=True)) for p in slices)
        transform = _random_crop() if augment else _centre_crop()
        on_gpu = self.device.type == "cuda"
        loader: DataLoader[Sample] = DataLoader(
            _Seeded(self.folder, transform),
            batch_sampler=pairs,
            num_workers=self.workers,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # else every epoch would draw from the global one
        )
        normalise = self.normalisation.on(self.device)
        for images, targets in loader:
            images = images.to(self.device, non_blocking=on_gpu)
            yield normalise(images), targets.to(self.device, non_blocking=on_gpu)


class _Seeded(Dataset[Sample]):
    """Samples by (index, seed): what is random in one depends on its seed, not on who reads it when."""

    def __init__(self, folder: Any, transform: Callable[[Any], Tensor]) -> None:
        self._folder = folder
        self._transform = transform

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, seed = key
        image, target = self._folder[index]
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(seed)
            return self._transform(image), target


def _random_crop() -> Callable[[Any], Tensor]:
    from torchvision import transforms

    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    composed: Callable[[Any], Tensor] = transforms.Compose(steps)
    return composed


def _centre_crop() -> Callable[[Any], Tensor]:
    from torchvision import transforms

    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    composed: Callable[[Any], Tensor] = transforms.Compose(steps)
    return composed
