"""Files that earlier versions wrote still load, wherever classes and functions have moved since."""

from pathlib import Path

import torch
from torch import nn

import sparsefx
from sparsefx.archive.make import CONSTRUCTIBLE
from sparsefx.passes.graph.in_place import NAMES
from sparsefx.passes.serialize.vocabulary import PASS_FUNCTIONS

FILES = Path(__file__).with_name("files")


@torch.no_grad()
def test_a_file_with_a_sparse_region():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(6, 5)
    )
    loaded = sparsefx.load(FILES / "sparse_region.safetensors", model)
    x = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
    expected = [
        [-0.02236882, -0.05488301, 0.09755322, 0.39299259, -0.36212260],
        [-0.24449213, -0.09930737, 0.04270613, 0.29460463, -0.29885519],
    ]
    torch.testing.assert_close(loaded(x), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_names_in_files_stay():
    assert {name for name in CONSTRUCTIBLE if not name.startswith("torch.")} == {
        "sparsefx.kernels.region.SparseRegion",
        "sparsefx.passes.open_norms.PartialLayerNorm",
    }
    assert {name for name in PASS_FUNCTIONS if ".in_place." not in name} == {
        "sparsefx.passes.example_tracer.require_default",
        "sparsefx.passes.example_tracer.require_length",
        "sparsefx.passes.open_attention.attention_mask",
        "sparsefx.passes.size_guards.require_sizes",
    }
    assert {name for name in PASS_FUNCTIONS if ".in_place." in name} == {
        f"sparsefx.passes.in_place.{name}" for name in NAMES
    }
