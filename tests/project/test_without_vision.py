"""What ``pip install .`` brings is enough for the main job: no torchvision, no pillow."""

import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run_source

from sparsefx import MissingPackageError
from sparsefx.experiments.data.folder import decode
from sparsefx.experiments.data.imagenet import imagenet_folders

BLOCK = """
import sys

assert not {"torchvision", "PIL"} & set(sys.modules)
sys.modules.update(torchvision=None, PIL=None)
"""

MAIN_JOB = """
import torch, sparsefx
from torch import nn

model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
model = sparsefx.sparsify(model, density=0.2)
optimizer = sparsefx.SparseMomentum(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), model, cycles=2)
x = torch.randn(8, 4)
for _ in range(2):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.cycle()
compact = sparsefx.export(model, (x,))
sparsefx.save(compact, "compact.safetensors")
torch.testing.assert_close(sparsefx.load("compact.safetensors", model)(x), model.eval()(x))
"""

TRAIN = """
from sparsefx.cli import main

arguments = "train --network lenet-300-100 --data mnist --root . --density 0.1 --epochs 1 --validation 8"
sys.exit(main(arguments.split()))
"""


def test_the_main_job_and_the_train_command_on_mnist(tmp_path: Path) -> None:
    pixels, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40, dtype=np.uint8) % 10
    np.savez(tmp_path / "mnist.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    done = run_source(BLOCK + MAIN_JOB + TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "compact.safetensors").is_file()
    assert "test error" in done.stdout
    assert len(list((tmp_path / "results").glob("*.jsonl"))) == 1


def test_image_files_ask_for_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.delitem(
        sys.modules, "sparsefx.experiments.data.image_folder", raising=False
    )  # has it already
    with pytest.raises(MissingPackageError, match=r"decoding images needs pillow: pip install '.*vision"):
        decode([tmp_path / "image.png"], 1, tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(MissingPackageError, match=r"'imagenet' needs torchvision: pip install '.*vision"):
        imagenet_folders(tmp_path, None, None, 0)
