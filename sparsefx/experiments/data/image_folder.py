"""torchvision's folder of images for each class, without what is hidden."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from sparsefx.experiments.data.folder import classes_of
from sparsefx.experiments.data.images import damaged


class VisibleImageFolder(ImageFolder):  # type: ignore[misc]  # torchvision has no annotations
    """An ``ImageFolder`` whose classes are the folders that are not hidden."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """The names of the classes, and their numbers."""
        names = classes_of(Path(directory))
        return names, {name: number for number, name in enumerate(names)}


def open_image_folder(folder: Path) -> ImageFolder:
    """The images of ``folder/<class>/``.

    Raises:
        ArgumentError: there is no class, or a class without images.
    """
    try:
        return VisibleImageFolder(folder, is_valid_file=partial(_is_sample, len(str(folder))))
    except (FileNotFoundError, ValueError) as error:
        raise damaged(folder, str(error)) from error


def _is_sample(start: int, path: str) -> bool:
    """Whether a file is an image, and neither it nor a folder from character ``start`` on is hidden."""
    return path.lower().endswith(IMG_EXTENSIONS) and f"{os.sep}." not in path[start:]
