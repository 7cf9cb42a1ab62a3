"""MNIST, from ``mnist.npz`` or from its four IDX files, compressed or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch

from sparsefx.experiments.data.images import Arrays, Images, damaged, missing, read_npz

_FOLDERS = ("", "MNIST/raw", "raw", "MNIST", "mnist")  # under the root; "raw" where the root is MNIST itself
_MAGIC = {1: 0x801, 3: 0x803}  # of IDX files of bytes with so many dimensions


def read_mnist(root: Path) -> Images:
    """MNIST in its canonical order: 60,000 and 10,000 samples of shape (1, 28, 28).

    Looks in ``root`` and in its folders ``MNIST/raw``, ``raw``, ``MNIST`` and ``mnist``, first for
    ``mnist.npz`` (``x_train``, ``y_train``, ``x_test``, ``y_test``) and then for the four IDX files:
    ``train-images-idx3-ubyte`` and the others as ``torchvision.datasets.MNIST(root, download=True)`` leaves
    them in ``MNIST/raw``, also with a dot (``train-images.idx3-ubyte``), and also compressed (``.gz``).

    Raises:
        ArgumentError: neither is there, or a file is damaged.
    """
    folders = [root / name for name in _FOLDERS]
    for folder in folders:
        if (folder / "mnist.npz").is_file():
            arrays = read_npz(folder / "mnist.npz", ("x_train", "y_train", "x_test", "y_test"))
            train, test = (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
            return _images(train, test)
    for folder in folders:
        if _idx_file(folder, "train", "images").is_file():
            return _images(_read_idx_pair(folder, "train"), _read_idx_pair(folder, "t10k"))
    looked_for = ["mnist.npz", "MNIST/raw/train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"]
    raise missing("MNIST", root, looked_for, "torchvision.datasets.MNIST(root, download=True)")


def _images(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Images:
    return Images("MNIST", "mnist", _with_channel(train), _with_channel(test))


def _with_channel(split: tuple[np.ndarray, np.ndarray]) -> Arrays:
    return torch.from_numpy(split[0])[:, None], torch.from_numpy(split[1].astype(np.int64))


def _read_idx_pair(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read_idx(_idx_file(folder, prefix, "images"), 3)
    return images, _read_idx(_idx_file(folder, prefix, "labels"), 1)


def _idx_file(folder: Path, prefix: str, what: str) -> Path:
    """The file of a split's images or labels in whatever spelling is there; the usual one if none is."""
    spellings = list(_spellings(prefix, what))
    return folder / next((name for name in spellings if (folder / name).is_file()), spellings[0])


def _spellings(prefix: str, what: str) -> Iterator[str]:
    dimensions = {"images": 3, "labels": 1}[what]
    for suffix, separator in product(("", ".gz"), "-."):
        yield f"{prefix}-{what}{separator}idx{dimensions}-ubyte{suffix}"


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of bytes: a magic number, the size of each dimension, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise damaged(path, str(error)) from error
    values = np.frombuffer(content, np.uint8)[4 * (1 + dimensions) :]
    if magic != _MAGIC[dimensions] or values.size != math.prod(shape):
        raise damaged(path, f"not an IDX file of bytes in {dimensions} dimensions")
    return values.reshape(shape).copy()
