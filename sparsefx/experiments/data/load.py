"""``load_data``: a data set by name, split and on its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.experiments.data.batches import Split, TensorSplit
from sparsefx.experiments.data.cifar10 import read_cifar10
from sparsefx.experiments.data.imagenet import imagenet_folders
from sparsefx.experiments.data.images import Arrays, Images
from sparsefx.experiments.data.mnist import read_mnist
from sparsefx.experiments.data.normalise import CIFAR10, IMAGENET, MNIST, Normalisation


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        name: its name in ``DATA``, or that of a copy, such as ``"cifar10-jpeg"``.
        title: what a table calls it; says where a copy is not the original.
        classes: number of classes.
        normalisation: of the inputs of every split.
        train: what to train on.
        validation: what was held out of the training data; None if nothing was.
        test: the test split.
    """

    name: str
    title: str
    classes: int
    normalisation: Normalisation
    train: Split
    validation: Split | None
    test: Split


_IN_MEMORY: dict[str, tuple[Callable[[Path], Images], Normalisation]] = {
    "mnist": (read_mnist, MNIST),
    "cifar10": (read_cifar10, CIFAR10),
}
DATA = (*_IN_MEMORY, "imagenet")


def load_data(
    name: str,
    root: str | Path,
    *,
    validation: int = 0,
    normalisation: Normalisation | None = None,
    device: str | torch.device = "cpu",
    workers: int = 4,
) -> Data:
    """Read a data set from a folder; nothing is downloaded.

    Args:
        name: ``"mnist"``, ``"cifar10"`` (both are put on the device whole) or ``"imagenet"``.
        root: the folder that holds it; see ``read_mnist``, ``read_cifar10`` and ``imagenet_folders`` for
            what is looked for.
        validation: training samples to hold out: see :func:`held_out`. The papers' are 6000 of MNIST and
            5000 of CIFAR-10; 0 for ImageNet. A data set with a validation split of its own keeps that one
            instead, and all its training samples.
        normalisation: of the inputs; by default the data set's own.
        device: where batches are made.
        workers: processes that read ImageNet.

    Raises:
        ArgumentError: ``name`` is unknown, the data is not under ``root`` or damaged, or there are fewer
            samples than ``validation`` asks for.
    """
    if name not in DATA:
        raise unknown_name("data", name, DATA)
    device = torch.device(device)
    if name == "imagenet":
        if validation:
            raise ArgumentError(
                f"validation={validation!r} must be 0 for imagenet: its recipes hold out none"
            )
        chosen = normalisation or IMAGENET
        train, test, classes = imagenet_folders(Path(root), chosen, device, workers)
        return Data(name, "ImageNet", classes, chosen, train, None, test)
    read, own = _IN_MEMORY[name]
    return _in_memory(read(Path(root)), validation, normalisation or own, device)


def _in_memory(images: Images, validation: int, normalisation: Normalisation, device: torch.device) -> Data:
    def split(arrays: Arrays) -> TensorSplit:
        return TensorSplit(arrays[0].to(device), arrays[1].to(device), normalisation)

    train, held_back = images.train, images.validation
    if validation and held_back is None:
        train, held_back = _hold_out(train, validation)
    return Data(
        name=images.name,
        title=images.title,
        classes=int(images.train[1].max()) + 1,
        normalisation=normalisation,
        train=split(train),
        validation=None if held_back is None else split(held_back),
        test=split(images.test),
    )


def _hold_out(arrays: Arrays, count: int) -> tuple[Arrays, Arrays]:
    """Training samples in two: what is left, and what is held out."""
    pixels, targets = arrays
    held = held_out(targets, count)
    return (pixels[~held], targets[~held]), (pixels[held], targets[held])


def held_out(targets: Tensor, count: int) -> Tensor:
    """Which training samples are for validation: the last ``count`` (Dettmers & Zettlemoyer 2019).

    Where samples are grouped by class, as in folders of images, the last of each class instead: the last
    ``count`` would be of one class. Classes then give as equal numbers as they can.

    Args:
        targets: int64, shape (N,).
        count: number of samples to hold out, less than N.

    Returns:
        bool, shape (N,).

    Raises:
        ArgumentError: ``count`` is negative, or leaves no sample to train on.

    Example:
        >>> held_out(torch.tensor([2, 0, 1, 1]), 1).tolist()
        [False, False, False, True]
        >>> held_out(torch.tensor([0, 0, 1, 1]), 2).tolist()
        [False, True, False, True]
    """
    if not 0 <= count < len(targets):
        raise ArgumentError(f"validation={count!r} is outside [0, {len(targets)}), the training samples")
    from_end = torch.arange(len(targets)).flip(0)
    if bool((targets[1:] >= targets[:-1]).all()):
        counts = torch.bincount(targets)
        ends = counts.cumsum(0)
        from_end = ends[targets] - 1 - torch.arange(len(targets))
    held = torch.zeros(len(targets), dtype=torch.bool)
    held[from_end.argsort(stable=True)[:count]] = True
    return held
