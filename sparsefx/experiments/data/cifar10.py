"""CIFAR-10, from the published Python batches, from an archive of JPEG scans, or from folders of images."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsefx.experiments.data.folder import check_same_classes, classes_of, decode, read_folder
from sparsefx.experiments.data.images import Arrays, Images, damaged, missing, read_npz

_BATCHES = "cifar-10-batches-py"
_JPEG = "cifar10_jpeg.npz"
_SIZE = (3, 32, 32)
_NOT_A_BATCH = (AttributeError, TypeError, ValueError)  # the pickle holds something else


def read_cifar10(root: Path) -> Images:
    """CIFAR-10: 50,000 and 10,000 samples of shape (3, 32, 32).

    Looks, in this order, for:

    - ``cifar-10-batches-py``, as ``torchvision.datasets.CIFAR10(root, download=True)`` leaves it;
    - ``cifar10_jpeg.npz``: ``header``, the bytes that all JPEG files share, and for ``train`` and ``test``
      ``scan_*`` (the rest of each file, end to end), ``length_*`` and ``label_*``;
    - ``cifar10/train`` and ``cifar10/test``, then ``train`` and ``test``: a folder of images for each class.
      A folder ``val`` beside them is the validation split. Without ``test``, ``val`` is the test split, as
      the papers use ImageNet's.

    The last two are copies, lossy if the files are JPEG, and the title says so. A copy with a validation
    split of its own has another name, since its runs train on other images.

    Raises:
        ArgumentError: none is there, a file is damaged, or folders differ in their classes.
    """
    if (root / _BATCHES / "data_batch_1").is_file():
        parts = [_read_batch(root / _BATCHES / f"data_batch_{number}") for number in range(1, 6)]
        return Images("CIFAR-10", "cifar10", _joined(parts), _read_batch(root / _BATCHES / "test_batch"))
    if (root / _JPEG).is_file():
        scans = root / _JPEG
        return Images(
            "CIFAR-10 (JPEG copy)", "cifar10-jpeg", _read_scans(scans, "train"), _read_scans(scans, "test")
        )
    for folder in (root / "cifar10", root):
        names = [name for name in ("train", "test", "val") if (folder / name).is_dir()]
        if names[:1] == ["train"] and len(names) > 1:
            return _read_folders(folder, *names)
    looked_for = [f"{_BATCHES}/data_batch_1", _JPEG, "cifar10/train and cifar10/test", "train and test"]
    raise missing("CIFAR-10", root, looked_for, "torchvision.datasets.CIFAR10(root, download=True)")


def _read_folders(root: Path, train: str, test: str, validation: str | None = None) -> Images:
    """The copy in folders of those names."""
    splits = []
    for name in filter(None, (train, test, validation)):
        check_same_classes(root, classes_of(root / train), classes_of(root / name), f"{train} and {name}")
        splits.append(read_folder(root / name))
    if validation is None:
        return Images("CIFAR-10 (image folder)", "cifar10-folder", *splits)
    return Images("CIFAR-10 (image folder with validation)", "cifar10-folder-val", *splits)


def _joined(batches: list[Arrays]) -> Arrays:
    images, targets = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(targets)


def _read_batch(path: Path) -> Arrays:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
        images = torch.from_numpy(batch["data"].reshape(-1, *_SIZE))
        return images, torch.tensor(batch["labels"])
    except (pickle.UnpicklingError, EOFError, OSError, LookupError, *_NOT_A_BATCH) as error:
        raise damaged(path, str(error)) from error


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain values; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        rebuild = np.empty(0).__reduce__()[0]
        allowed = {"_reconstruct": rebuild, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_scans(path: Path, split: str) -> Arrays:
    names = ("header", f"scan_{split}", f"length_{split}", f"label_{split}")
    header, scans, lengths, labels = read_npz(path, names).values()
    start, rest = header.tobytes(), scans.tobytes()
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    files = (io.BytesIO(start + rest[a:b]) for a, b in zip([0, *ends], ends, strict=False))
    return decode(files, len(ends), path), torch.from_numpy(labels.astype(np.int64))
