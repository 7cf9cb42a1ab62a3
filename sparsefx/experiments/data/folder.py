"""Small images from a folder a class, decoded once into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from sparsefx.errors import ArgumentError
from sparsefx.experiments.data.images import Arrays, damaged, missing_package

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}


def read_folder(folder: Path) -> Arrays:
    """Every image of ``folder/<class>/<file>``; classes and files in the order of their names.

    That is the order of ``torchvision.datasets.ImageFolder`` where classes have no folders inside. Hidden
    files and folders are left out, such as ``.ipynb_checkpoints`` and the ``._*.png`` of macOS.

    Raises:
        ArgumentError: there is no class or a class without images, images differ in size, or one is damaged.
    """
    classes = [folder / name for name in classes_of(folder)]
    files = [sorted(filter(is_image, path.iterdir())) for path in classes]
    empty = [path.name for path, images in zip(classes, files, strict=True) if not images]
    if empty or not classes:
        which = f"classes {', '.join(empty)} have" if classes else "there is no folder of a class with"
        raise ArgumentError(f"{folder}: {which} no images ({', '.join(sorted(_SUFFIXES))})")
    counts = torch.tensor([len(images) for images in files])
    paths = [path for images in files for path in images]
    return decode(paths, len(paths), folder), torch.arange(len(classes)).repeat_interleave(counts)


def check_same_classes(root: Path, first: Sequence[str], second: Sequence[str], names: str) -> None:
    """Refuse two splits whose classes are not the same, since each numbers its own.

    Raises:
        ArgumentError: names the classes that one lacks.
    """
    if differing := sorted(set(first) ^ set(second)):
        raise ArgumentError(f"root={str(root)!r}: classes {differing[:5]} are in one of {names} only")


def classes_of(folder: Path) -> list[str]:
    """The names of a folder's classes, in order."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is one that other programs leave: its name begins with a dot."""
    return path.name.startswith(".")


def is_image(path: Path) -> bool:
    """Whether a file is a sample, by its name."""
    return path.suffix.lower() in _SUFFIXES and not is_hidden(path)


def decode(files: Iterable[Path | BinaryIO], count: int, where: Path) -> Tensor:
    """Image files of one size as a uint8 tensor (count, 3, H, W).

    Args:
        files: paths or open files.
        count: how many.
        where: what an error names.

    Raises:
        ArgumentError: an image is damaged or differs in size from the first.
        MissingPackageError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package(f"{where}: decoding images", "pillow") from error

    pixels = np.empty((0,), np.uint8)
    for index, file in enumerate(files):
        try:
            image = np.asarray(Image.open(file).convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise damaged(where, f"image {index}, {error}") from error
        if index == 0:
            pixels = np.empty((count, *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise damaged(where, f"image {index} is {image.shape[:2]}, the first {pixels.shape[1:3]}")
        pixels[index] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
