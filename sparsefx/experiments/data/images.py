"""What every reader of a data set returns, and what it says when it cannot."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsefx.errors import ArgumentError, MissingPackageError

Arrays = tuple[Tensor, Tensor]
"""Images, uint8 (N, C, H, W), and targets, int64 (N,)."""


@dataclass(frozen=True)
class Images:
    """A data set as it was read: no split for validation yet, nothing on a device.

    Attributes:
        title: what a table calls it; says where a copy is not the original.
        name: what the ledger calls it; a copy has a name of its own, so that results are never mixed.
        train: the training images and targets, in the order of the files.
        test: the test images and targets.
        validation: images and targets that the data set itself holds out; None where it has none.

    Raises:
        ArgumentError: there are not as many images as targets, or images are not uint8 (N, C, H, W).
    """

    title: str
    name: str
    train: Arrays
    test: Arrays
    validation: Arrays | None = None

    def __post_init__(self) -> None:
        for images, targets in filter(None, (self.train, self.test, self.validation)):
            if len(images) != len(targets) or images.dim() != 4 or images.dtype != torch.uint8:
                raise ArgumentError(
                    f"{self.title}: {tuple(images.shape)} {images.dtype} images with {len(targets)} targets; "
                    "they must be as many, and uint8 of shape (N, C, H, W). Fetch the data again"
                )


def missing(what: str, root: Path, looked_for: Iterable[str], remedy: str) -> ArgumentError:
    """The error for a data set that is not under ``root``."""
    return ArgumentError(
        f"root={str(root)!r} holds no {what}: looked for {', '.join(looked_for)} there. "
        f"Give the folder that holds one of them, or fetch it with {remedy}"
    )


def missing_package(what: str, package: str) -> MissingPackageError:
    """The error for a reader of image files without the package that reads them."""
    return MissingPackageError(f"{what} needs {package}: pip install 'sparsefx[vision]', or {package} alone")


def damaged(path: Path, why: str) -> ArgumentError:
    """The error for a file that is there and cannot be used."""
    return ArgumentError(f"{path} cannot be read: {why}. Fetch it again")


def read_npz(path: Path, names: Iterable[str]) -> Mapping[str, np.ndarray]:
    """The named arrays of an ``.npz`` file; unpickles nothing.

    Raises:
        ArgumentError: it is not such a file or lacks one of them.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, str(error)) from error
