"""MNIST, from ``mnist.npz`` or from the files that torchvision's reader downloads."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch

from sparsefx.experiments.data.images import Arrays, Images, damaged, missing, read_npz

_RAW = Path("MNIST", "raw")
_MAGIC = {1: 0x801, 3: 0x803}  # of IDX files of bytes with so many dimensions


def read_mnist(root: Path) -> Images:
    """MNIST in its canonical order: 60,000 and 10,000 samples of shape (1, 28, 28).

    Looks for ``mnist.npz`` (``x_train``, ``y_train``, ``x_test``, ``y_test``) and then for ``MNIST/raw``
    as ``torchvision.datasets.MNIST(root, download=True)`` leaves it.

    Raises:
        ArgumentError: neither is there, or a file is damaged.
    """
    if (root / "mnist.npz").is_file():
        found = read_npz(root / "mnist.npz", ("x_train", "y_train", "x_test", "y_test"))
        train, test = (found["x_train"], found["y_train"]), (found["x_test"], found["y_test"])
    elif (root / _RAW / "train-images-idx3-ubyte").is_file():
        train, test = _read_raw(root / _RAW, "train"), _read_raw(root / _RAW, "t10k")
    else:
        looked_for = ["mnist.npz", f"{_RAW.as_posix()}/train-images-idx3-ubyte"]
        raise missing("MNIST", root, looked_for, "torchvision.datasets.MNIST(root, download=True)")
    return Images("MNIST", "mnist", _with_channel(train), _with_channel(test))


def _with_channel(split: tuple[np.ndarray, np.ndarray]) -> Arrays:
    return torch.from_numpy(split[0])[:, None], torch.from_numpy(split[1].astype(np.int64))


def _read_raw(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
    return images, _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of bytes: a magic number, the size of each dimension, the values."""
    try:
        content = path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    except (OSError, struct.error) as error:
        raise damaged(path, str(error)) from error
    values = np.frombuffer(content, np.uint8)[4 * (1 + dimensions) :]
    if magic != _MAGIC[dimensions] or values.size != math.prod(shape):
        raise damaged(path, f"not an IDX file of bytes in {dimensions} dimensions")
    return values.reshape(shape).copy()
