"""Reading, splitting, batching and augmenting, on made data; the real data only where SPARSEFX_DATA says."""

import gzip
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from properties import properties
from torch import Tensor
from torch.nn import functional as F

from sparsefx.errors import ArgumentError
from sparsefx.experiments.data import (
    DATA,
    Batch,
    Normalisation,
    Split,
    TensorSplit,
    batch_count,
    epoch_generator,
    held_out,
    load_data,
)
from sparsefx.experiments.data.augment import PADDING, CropsAndFlips, crop_and_flip
from sparsefx.experiments.data.folder import read_folder
from sparsefx.experiments.tables.query import COPIES

RNG = np.random.default_rng(0)
COUNTS = {"train": 40, "test": 20}


def bytes_of(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


MNIST = {
    "x_train": bytes_of(40, 28, 28),
    "y_train": bytes_of(40) % 10,
    "x_test": bytes_of(20, 28, 28),
    "y_test": np.arange(20, dtype=np.uint8) % 10,
}


def write_mnist_npz(root: Path) -> None:
    np.savez(root / "mnist.npz", **MNIST)


def write_mnist_raw(root: Path) -> None:
    """Byte by byte as the format's description has it."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = MNIST[f"x_{split}"], MNIST[f"y_{split}"]
        header = b"\x00\x00\x08\x03" + struct.pack(">III", len(images), 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = b"\x00\x00\x08\x01" + struct.pack(">I", len(labels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did, which wrote the published files: as a string of no encoding."""

    def save_string(self, content: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string}  # noqa: RUF012


def python2_pickle(content: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def write_batches(root: Path) -> dict[str, np.ndarray]:
    """CIFAR-10's Python batches: rows of 3072 bytes, all red ones first, and a list of labels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    written = {}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        written[name] = bytes_of(8, 3072)
        content = {"data": written[name], "labels": [3, 1, 4, 1, 5, 9, 2, 6]}
        (folder / name).write_bytes(python2_pickle(content))
    return written


def smooth_images(count: int) -> np.ndarray:
    """Images that JPEG changes little: each of one colour."""
    return np.broadcast_to(bytes_of(count, 1, 1, 3), (count, 32, 32, 3))


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_scans(root: Path) -> dict[str, np.ndarray]:
    images = {split: smooth_images(count) for split, count in COUNTS.items()}
    arrays = {}
    for split, pixels in images.items():
        files = [jpeg(image) for image in pixels]
        shared = 600  # any common prefix will do: files of one size and quality share their tables
        assert len({file[:shared] for file in files}) == 1
        arrays["header"] = np.frombuffer(files[0][:shared], np.uint8)
        arrays[f"scan_{split}"] = np.frombuffer(b"".join(file[shared:] for file in files), np.uint8)
        arrays[f"length_{split}"] = np.array([len(file) - shared for file in files], np.uint16)
        arrays[f"label_{split}"] = (np.arange(len(files)) * 10 // len(files)).astype(np.uint8)
    np.savez(root / "cifar10_jpeg.npz", **arrays)
    return images


def write_folder(root: Path, splits: dict[str, int], size: int = 32) -> None:
    """Two classes; image ``i`` of class ``c`` has every value ``100 * c + i``."""
    for split, count in splits.items():
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((size, size, 3), 100 * label + index, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index:03d}.png")


def plain(channels: int) -> Normalisation:
    """Leaves values in [0, 255]."""
    return Normalisation((0.0,) * channels, (1 / 255,) * channels)


def everything(split: Split) -> Batch:
    (batch,) = split.batches(len(split))
    return batch


# ---- reading


@pytest.mark.parametrize("write", [write_mnist_npz, write_mnist_raw])
def test_mnist(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    data = load_data("mnist", tmp_path, normalisation=plain(1))
    assert (data.title, data.classes, data.validation) == ("MNIST", 10, None)
    for split, name in ((data.train, "train"), (data.test, "test")):
        images, targets = everything(split)
        assert images[:, 0].round().tolist() == MNIST[f"x_{name}"].tolist()
        assert targets.tolist() == MNIST[f"y_{name}"].tolist()
        assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)


def test_cifar10_batches(tmp_path: Path) -> None:
    written = write_batches(tmp_path)
    data = load_data("cifar10", tmp_path, normalisation=plain(3))
    assert (data.name, len(data.train), len(data.test)) == ("cifar10", 40, 8)
    images, targets = everything(data.train)
    rows = np.concatenate([written[f"data_batch_{number}"] for number in range(1, 6)])
    assert images.round().flatten(1).tolist() == rows.tolist()
    assert targets.tolist() == [3, 1, 4, 1, 5, 9, 2, 6] * 5


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    write_batches(tmp_path)
    trap = python2_pickle({"data": np.zeros((8, 3072), np.uint8), "labels": Trap()})
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(trap)
    with pytest.raises(ArgumentError, match=r"data_batch_3 cannot be read: it asks for .*mkdir"):
        load_data("cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[1, 2], {"data": 5, "labels": []}, {"labels": [1]}])
def test_a_pickle_of_something_else(content: object, tmp_path: Path) -> None:
    write_batches(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(python2_pickle(content))
    with pytest.raises(ArgumentError, match="test_batch cannot be read"):
        load_data("cifar10", tmp_path)


def test_cifar10_scans(tmp_path: Path) -> None:
    written = write_scans(tmp_path)
    data = load_data("cifar10", tmp_path, normalisation=plain(3))
    assert (data.title, data.name, data.classes) == ("CIFAR-10 (JPEG copy)", "cifar10-jpeg", 10)
    for split, name in ((data.train, "train"), (data.test, "test")):
        images, targets = everything(split)
        expected = torch.from_numpy(written[name].copy()).permute(0, 3, 1, 2).float()
        assert (images - expected).abs().max() < 4  # lossy
        assert targets.tolist() == [index * 10 // len(split) for index in range(len(split))]


@pytest.mark.parametrize("inside", ["cifar10", "."])
def test_cifar10_folders(inside: str, tmp_path: Path) -> None:
    write_folder(tmp_path / inside, {"train": 12, "test": 3})
    data = load_data("cifar10", tmp_path, normalisation=plain(3))
    assert (data.title, data.name, data.classes) == ("CIFAR-10 (image folder)", "cifar10-folder", 2)
    images, targets = everything(data.train)
    assert images.shape == (24, 3, 32, 32)
    assert images[:, 0, 0, 0].round().tolist() == [*range(12), *range(100, 112)]
    assert targets.tolist() == [0] * 12 + [1] * 12


def test_the_original_comes_before_a_copy(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "test": 2})
    write_scans(tmp_path)
    assert load_data("cifar10", tmp_path).title == "CIFAR-10 (JPEG copy)"
    write_batches(tmp_path)
    assert load_data("cifar10", tmp_path).title == "CIFAR-10"


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("mnist", "mnist.npz, MNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1, cifar10_jpeg.npz, cifar10/train and cifar10/test"),
        ("imagenet", "train and val"),
    ],
)
def test_missing_data(name: str, looked_for: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=rf"^root=.* holds no .*looked for {looked_for}.*fetch it with"):
        load_data(name, tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_mnist_raw(tmp_path)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for content in (b"", whole[:3], whole[:-1], whole + b"\x00", b"\x00\x00\x08\x03" + whole[4:]):
        labels.write_bytes(content)
        with pytest.raises(ArgumentError, match="t10k-labels-idx1-ubyte cannot be read: "):
            load_data("mnist", tmp_path)
    labels.unlink()
    with pytest.raises(ArgumentError, match=r"t10k-labels-idx1-ubyte cannot be read: .*No such file"):
        load_data("mnist", tmp_path)
    (tmp_path / "mnist.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ArgumentError, match=r"mnist\.npz cannot be read"):
        load_data("mnist", tmp_path)
    np.savez(tmp_path / "mnist.npz", x_train=MNIST["x_train"])
    with pytest.raises(ArgumentError, match=r"mnist\.npz cannot be read: .*y_train"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"y_train": MNIST["y_train"][1:]}, {"x_test": MNIST["x_test"].astype(np.float32)}]
)
def test_images_that_do_not_fit_their_targets(wrong: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **{**MNIST, **wrong})
    with pytest.raises(ArgumentError, match=r"^MNIST: \(\d+, 1, 28, 28\) .* images with \d+ targets"):
        load_data("mnist", tmp_path)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ArgumentError, match="there is no folder of a class with no images"):
        read_folder(tmp_path / "none")
    write_folder(tmp_path, {"sizes": 2})
    (tmp_path / "sizes" / "cat").mkdir()
    with pytest.raises(ArgumentError, match="classes cat have no images"):
        read_folder(tmp_path / "sizes")
    Image.fromarray(bytes_of(8, 8, 3)).save(tmp_path / "sizes" / "cat" / "0.png")
    with pytest.raises(ArgumentError, match=r"image 4 is \(8, 8\), the first \(32, 32\)"):
        read_folder(tmp_path / "sizes")
    (tmp_path / "sizes" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ArgumentError, match="image 4, cannot identify"):
        read_folder(tmp_path / "sizes")


def test_train_and_test_have_the_same_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "test": 1})
    (first, *_) = sorted(path for path in (tmp_path / "test").iterdir())
    first.rename(first.with_name("other"))
    with pytest.raises(ArgumentError, match=r"'other'.* are in one of train and test only"):
        load_data("cifar10", tmp_path)


def test_unknown_data() -> None:
    with pytest.raises(ArgumentError, match="data='cifar100' is not known; did you mean 'cifar10'"):
        load_data("cifar100", ".")


# ---- in other spellings and places


def rename_idx(folder: Path, *, dotted: bool, compressed: bool) -> None:
    for path in list(folder.iterdir()):
        name = path.name.replace("-idx", ".idx") if dotted else path.name
        content = path.read_bytes()
        path.unlink()
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def assert_is_mnist(root: Path) -> None:
    images, targets = everything(load_data("mnist", root, normalisation=plain(1)).test)
    assert images[:, 0].round().tolist() == MNIST["x_test"].tolist()
    assert targets.tolist() == MNIST["y_test"].tolist()


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_in_other_spellings(tmp_path: Path, dotted: bool, compressed: bool) -> None:
    write_mnist_raw(tmp_path)
    rename_idx(tmp_path / "MNIST" / "raw", dotted=dotted, compressed=compressed)
    for root in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        assert_is_mnist(root)


@pytest.mark.parametrize("folder", ["MNIST", "mnist"])
def test_mnist_one_level_deeper(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    write_mnist_npz(tmp_path / folder)
    assert_is_mnist(tmp_path)


@pytest.mark.parametrize("cut", [slice(0), slice(5), slice(-9), slice(20, None)])
def test_damaged_compressed_files_are_named(tmp_path: Path, cut: slice) -> None:
    write_mnist_raw(tmp_path)
    rename_idx(tmp_path / "MNIST" / "raw", dotted=True, compressed=True)
    path = tmp_path / "MNIST" / "raw" / "train-labels.idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(ArgumentError, match=r"train-labels\.idx1-ubyte\.gz cannot be read: "):
        load_data("mnist", tmp_path)


def litter(root: Path, split: str, name: str) -> None:
    """What notebooks and macOS leave."""
    (root / split / ".ipynb_checkpoints").mkdir()
    (root / split / name / ".ipynb_checkpoints").mkdir()
    (root / split / name / ".ipynb_checkpoints" / "000-checkpoint.png").write_bytes(b"no image")
    (root / split / name / "._000.png").write_bytes(b"no image")


def test_hidden_files_of_folders_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 3, "test": 2})
    litter(tmp_path, "train", "ant")
    data = load_data("cifar10", tmp_path)
    assert (data.classes, len(data.train), len(data.test)) == (2, 6, 4)


def test_a_validation_folder_is_the_validation_split(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 3, "val": 2, "test": 1})
    data = load_data("cifar10", tmp_path, validation=2, normalisation=plain(3))
    assert data.name == "cifar10-folder-val"
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 4, 2)
    assert everything(data.validation)[0][:, 0, 0, 0].round().tolist() == [0, 1, 100, 101]
    assert COPIES[data.name][0] == "cifar10"


def test_without_a_test_folder_the_validation_folder_is_the_test_split(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 3, "val": 2})
    data = load_data("cifar10", tmp_path, validation=2)
    assert data.name == "cifar10-folder"
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 4)


# ---- splitting


def test_the_last_samples_are_held_out(tmp_path: Path) -> None:
    write_mnist_npz(tmp_path)
    data = load_data("mnist", tmp_path, validation=6, normalisation=plain(1))
    assert data.validation is not None
    for split, part in ((data.train, slice(34)), (data.validation, slice(34, 40))):
        images, targets = everything(split)
        assert images[:, 0].round().tolist() == MNIST["x_train"][part].tolist()
        assert targets.tolist() == MNIST["y_train"][part].tolist()


@properties()
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.data())
def test_each_class_gives_its_last_where_they_are_grouped(sizes: list[int], draw: st.DataObject) -> None:
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    count = draw.draw(st.integers(0, len(targets) - 1))
    held = held_out(targets, count)
    assert int(held.sum()) == count
    per_class = torch.bincount(targets[held], minlength=len(sizes)).tolist()
    for label, size in enumerate(sizes):
        of_class = held[targets == label].tolist()
        assert of_class == [False] * (size - per_class[label]) + [True] * per_class[label]
        assert per_class[label] >= min(size, max(per_class) - 1)  # equal, but for one and for small classes


@pytest.mark.parametrize("count", [-1, 40, 41])
def test_validation_must_leave_something(count: int, tmp_path: Path) -> None:
    write_mnist_npz(tmp_path)
    with pytest.raises(ArgumentError, match=rf"validation={count} is outside \[0, 40\)"):
        load_data("mnist", tmp_path, validation=count)


# ---- batches


def numbered(count: int) -> TensorSplit:
    """Sample ``i`` is an image whose every pixel is ``i``, of class ``i``."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return TensorSplit(images, torch.arange(count), plain(3))


def test_in_order_without_a_generator() -> None:
    batches = list(numbered(10).batches(4))
    assert [targets.tolist() for _, targets in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    dropped = list(numbered(10).batches(4, drop_last=True))
    assert [targets.tolist() for _, targets in dropped] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("augment", [False, True])
def test_every_sample_once_with_its_own_target(augment: bool) -> None:
    batches = list(numbered(50).batches(8, epoch_generator(0, 0), augment=augment))
    targets = torch.cat([targets for _, targets in batches])
    images = torch.cat([images for images, _ in batches])
    assert targets.sort().values.tolist() == list(range(50))
    assert targets.tolist() != list(range(50))
    torch.testing.assert_close(images, targets.float().view(-1, 1, 1, 1).expand_as(images))


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("start", [0, 1, 5, 6, 7])
def test_a_start_in_the_middle_gives_the_same_batches(start: int, augment: bool) -> None:
    split = TensorSplit(torch.from_numpy(bytes_of(50, 3, 8, 8)), torch.arange(50), plain(3))
    whole = list(split.batches(8, epoch_generator(3, 1), augment=augment))
    rest = list(split.batches(8, epoch_generator(3, 1), augment=augment, start=start))
    assert len(rest) == 7 - start
    for expected, found in zip(whole[start:], rest, strict=True):
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])


def test_every_seed_and_epoch_has_its_own_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.randperm(100, generator=epoch_generator(seed, epoch)).tolist()

    orders = [order(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(found) for found in orders}) == 16
    assert order(2, 3) == order(2, 3)


def test_normalised() -> None:
    images = torch.tensor([[0, 255], [51, 204]], dtype=torch.uint8).view(2, 2, 1, 1)
    split = TensorSplit(images, torch.zeros(2, dtype=torch.int64), Normalisation((0.5, 0.2), (0.25, 0.1)))
    inputs, _ = everything(split)
    expected = torch.tensor([[-2.0, 8.0], [-1.2, 6.0]]).view(2, 2, 1, 1)
    torch.testing.assert_close(inputs, expected)


def test_arguments_of_batches() -> None:
    split = numbered(10)
    with pytest.raises(ArgumentError, match="start=4 is outside the epoch's 3 batches of 4"):
        split.batches(4, start=4)
    with pytest.raises(ArgumentError, match="batch_size=0 must be at least 1"):
        split.batches(0)
    with pytest.raises(ArgumentError, match="augment=True needs generator="):
        split.batches(4, augment=True)
    with pytest.raises(ArgumentError, match="seed=-1 and epoch=0 must be at least 0"):
        epoch_generator(-1, 0)
    with pytest.raises(ArgumentError, match="need one number a channel each"):
        Normalisation((0.5,), (0.5, 0.5))
    with pytest.raises(ArgumentError, match=r"std=\(0.0,\) must be positive"):
        Normalisation((0.5,), (0.0,))


@pytest.mark.parametrize(
    ("samples", "size", "count", "dropped"),
    [(54_000, 100, 540, 540), (45_000, 128, 352, 351), (1_281_167, 256, 5_005, 5_004), (3, 4, 1, 0)],
)
def test_batch_count(samples: int, size: int, count: int, dropped: int) -> None:
    assert batch_count(samples, size) == count
    assert batch_count(samples, size, drop_last=True) == dropped


# ---- augmentation


def padded_cropped_flipped(image: Tensor, top: int, left: int, flipped: bool) -> Tensor:
    """The same one image at a time, by torch's own padding."""
    padded = F.pad(image.float()[None], (PADDING,) * 4, mode="reflect")[0]
    cropped = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return cropped.flip(2) if flipped else cropped


@properties()
@given(st.integers(0, 2**32))
def test_crop_and_flip_is_pad_crop_and_flip(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (6, 3, 7, 5), generator=generator, dtype=torch.uint8)
    where = CropsAndFlips.draw(6, generator)
    found = crop_and_flip(images, where)
    assert found.dtype == torch.uint8
    places = zip(images, where.top.tolist(), where.left.tolist(), where.flipped.tolist(), strict=True)
    assert torch.equal(found.float(), torch.stack([padded_cropped_flipped(*place) for place in places]))


def test_every_place_is_drawn_equally_often() -> None:
    where = CropsAndFlips.draw(90_000, torch.Generator().manual_seed(0))
    for offsets in (where.top, where.left):
        assert torch.bincount(offsets).tolist() == pytest.approx([10_000] * 9, rel=0.05)
    assert where.flipped.float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert torch.corrcoef(torch.stack([where.top.float(), where.left.float(), where.flipped.float()])).sub(
        torch.eye(3)
    ).abs().max() < 0.02  # fmt: skip


# ---- ImageNet


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("n01", "n02")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((40, 60, 3), 100 * label + index, np.uint8)
                pixels[:, 30:] += 50
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def test_imagenet_in_order(imagenet: Path) -> None:
    data = load_data("imagenet", imagenet, normalisation=plain(3), workers=0)
    assert (data.title, data.classes, data.validation) == ("ImageNet", 2, None)
    assert (len(data.train), len(data.test)) == (10, 4)
    images, targets = everything(data.test)
    assert targets.tolist() == [0, 0, 1, 1]
    assert images.shape == (4, 3, 224, 224)
    assert images[:, 0, 112, 0].round().tolist() == [0, 1, 100, 101]
    assert images[:, 0, 112, 223].round().tolist() == [50, 51, 150, 151]


def test_imagenet_batches_do_not_depend_on_workers_or_start(imagenet: Path) -> None:
    def batches(workers: int, **where: int) -> list[Batch]:
        data = load_data("imagenet", imagenet, workers=workers)
        return list(data.train.batches(3, epoch_generator(0, 2), augment=True, **where))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = batches(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(torch.cat([targets for _, targets in whole]).tolist()) == [0] * 5 + [1] * 5
    for others, expected in ((batches(2), whole), (batches(0, start=2), whole[2:])):
        assert len(others) == len(expected)
        for (images, targets), (same_images, same_targets) in zip(others, expected, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(targets, same_targets)


def test_imagenet_holds_nothing_out_and_needs_the_same_classes(imagenet: Path) -> None:
    with pytest.raises(ArgumentError, match="validation=10 must be 0 for imagenet"):
        load_data("imagenet", imagenet, validation=10)
    (imagenet / "val" / "n02").rename(imagenet / "val" / "n03")
    with pytest.raises(ArgumentError, match=r"classes \['n02', 'n03'\] are in one of train and val only"):
        load_data("imagenet", imagenet)


def test_imagenet_leaves_out_what_is_hidden(imagenet: Path) -> None:
    litter(imagenet, "train", "n01")
    data = load_data("imagenet", imagenet, workers=0)
    assert (data.classes, len(data.train)) == (2, 10)
    assert pickle.loads(pickle.dumps(data.train)).folder.classes == ["n01", "n02"]  # as workers get it


def test_imagenet_without_images(imagenet: Path) -> None:
    (imagenet / "train" / "n03").mkdir()
    with pytest.raises(ArgumentError, match="train cannot be read: Found no valid file for the classes n03"):
        load_data("imagenet", imagenet)
    for folder in (imagenet / "train").iterdir():
        folder.rename(imagenet / folder.name)
    with pytest.raises(ArgumentError, match="train cannot be read"):
        load_data("imagenet", imagenet)


# ---- the real data

REAL = os.environ.get("SPARSEFX_DATA")


@pytest.mark.skipif(REAL is None, reason="SPARSEFX_DATA does not say where MNIST and CIFAR-10 are")
@pytest.mark.parametrize(("name", "held"), [("mnist", 6_000), ("cifar10", 5_000)])
def test_real_data(name: str, held: int) -> None:
    assert name in DATA
    data = load_data(name, str(REAL), validation=held)
    assert data.validation is not None
    total = {"mnist": 60_000, "cifar10": 50_000}[name]
    assert (len(data.train), len(data.validation), len(data.test)) == (total - held, held, 10_000)
    images, _ = everything(data.train)
    channels = images.transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 0.02
    assert (channels.std(1) - 1).abs().max() < 0.35  # CIFAR-10's .2023 and so on are too small by a fifth
    _, targets = everything(data.validation)
    assert torch.bincount(targets).min() > 0.08 * held
