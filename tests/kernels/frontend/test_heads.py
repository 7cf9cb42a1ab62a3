"""Linear layers after images of one element belong to the region of the convolutions before them."""

import pytest
import torch
from torch import nn

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.kernels.frontend import backend
from sparsefx.kernels.runtime.region import SparseRegion


def exported(model, *inputs, kernels="sparse"):
    """The masked model, what becomes of it, and the regions in that."""
    torch.manual_seed(0)
    sparse = sparsefx.sparsify(model, density=0.5).eval()
    compact = sparsefx.export(sparse, inputs, kernels=kernels)
    return sparse, compact, [module for module in compact.modules() if isinstance(module, SparseRegion)]


def close(output, expected):
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class Head(nn.Module):
    """A convolution, its image as rows in some way, and linear layers."""

    def __init__(self, flatten, dims=2):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv1d
        self.body, self.flatten = conv(3, 20, 3, padding=1), flatten
        self.norm = nn.BatchNorm1d(20)
        self.head = nn.Sequential(nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 5))

    def forward(self, x):
        return self.head(self.norm(self.flatten(self.body(x))))


def pooled(x):
    return nn.functional.adaptive_avg_pool2d(x, 1)


FLATTEN = {
    "flatten": lambda x: pooled(x).flatten(1),
    "torch.flatten": lambda x: torch.flatten(pooled(x).relu(), 1),
    "reshape": lambda x: pooled(x).reshape(-1, 20),
    "view": lambda x: (lambda x: x.view(x.size(0), -1))(pooled(x)),
    "flattened twice": lambda x: pooled(x).contiguous().flatten(1).flatten(1),
    "dropped": lambda x: nn.functional.dropout(pooled(x), 0.5, False).flatten(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean from the end": lambda x: x.relu().mean([-1, -2]),
    "max": lambda x: nn.functional.max_pool2d(x, 8).flatten(1),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FLATTEN)
def test_one_region_for_the_network(name):
    model, compact, regions = exported(Head(FLATTEN[name]), torch.randn(2, 3, 8, 8))
    assert [name for name, _, _ in regions[0].layers] == ["body", "head.0", "head.2"]
    for images in (1, 2, 7, 16, 33):
        x = torch.randn(images, 3, 8, 8)
        close(compact(x), model(x))


@torch.no_grad()
def test_in_one_dimension():
    model, compact, regions = exported(Head(lambda x: x.mean(2), dims=1), torch.randn(2, 3, 8))
    assert len(regions) == 1
    x = torch.randn(3, 3, 50)
    close(compact(x), model(x))


@torch.no_grad()
def test_both_are_read():
    """Rows and the image that they were are both returned."""

    class Both(Head):
        def forward(self, x):
            image = pooled(self.body(x))
            rows = image.flatten(1)
            again = image.flatten(1)
            return image, rows, again, self.head(rows)

    model, compact, regions = exported(Both(None), torch.randn(2, 3, 8, 8))
    assert len(regions) == 1
    x = torch.randn(5, 3, 8, 8)
    for output, expected in zip(compact(x), model(x), strict=True):
        assert output.shape == expected.shape
        close(output, expected)


@torch.no_grad()
def test_other_rows_come_in():
    """What reads rows from elsewhere, or from images of other dimensions, is computed all the same."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.long, self.table = nn.Conv2d(3, 6, 3), nn.Conv1d(3, 6, 3), nn.Linear(4, 6)
            self.head = nn.Linear(18, 5)

        def forward(self, x, y, z):
            rows = [self.flat(x).mean((2, 3)), self.long(y).mean(2), torch.relu(self.table(z))]
            return self.head(torch.cat(rows, 1))

    inputs = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8), torch.randn(2, 4)

    model, compact, regions = exported(Joined(), *inputs)
    layers = {name for region in regions for name, _, _ in region.layers}
    assert layers == {"flat", "long", "table", "head"}
    close(compact(*inputs), model(*inputs))


@torch.no_grad()
def test_rows_of_another_region_come_in():
    class Fused(nn.Module):
        """Features of two depths, an operation without an instruction between them."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3)
            self.head = nn.Linear(13, 5)

        def forward(self, x):
            x = self.first(x)
            early = x.mean((2, 3))
            late = self.second(x + early.sin()[:, :, None, None]).mean((2, 3))
            return self.head(torch.cat([early, late], 1))

    model, compact, regions = exported(Fused(), torch.randn(2, 3, 8, 8))
    assert [[name for name, _, _ in region.layers] for region in regions] == [["first"], ["second", "head"]]
    for images in (1, 3, 20):
        x = torch.randn(images, 3, 8, 8)
        close(compact(x), model(x))
    image = torch.randn(2, 6, 8, 8)
    with pytest.raises(ArgumentError, match=r"8\); these sparse kernels take 2 dimensions"):
        regions[1](image, image, image)


@torch.no_grad()
def test_images_that_are_not_of_one_element():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24, 5))
    x = torch.randn(2, 3, 8, 8)
    model, compact, regions = exported(model, x)
    assert len(regions) == 2
    close(compact(x), model(x))


@torch.no_grad()
def test_another_size_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(6, 5))
    _, compact, (region,) = exported(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"has size 16 in dimension 2; the model was exported for 8"):
        compact(torch.randn(2, 3, 16, 16))
    with pytest.raises(ArgumentError, match=r"flattened at \(1, 2, 2\), not at one element"):
        region(torch.randn(2, 3, 16, 16))


@torch.no_grad()
def test_auto_tries_a_slow_head_apart(monkeypatch):
    monkeypatch.setattr("sparsefx.passes.regions.regions.medians", lambda *_: (1.0, 2.0))
    seconds = iter([(2.0, 1.0), (1.0, 2.0), (1.0, 2.0)])  # all, the body, the head
    monkeypatch.setattr(backend, "medians", lambda *_: next(seconds))
    slow = iter([False, True, False])  # the body, and the first layer of the head
    monkeypatch.setattr(backend, "is_faster", lambda *_: not next(slow))
    x = torch.randn(2, 3, 8, 8)
    model, compact, regions = exported(Head(FLATTEN["mean"]), x, kernels="auto")
    assert [[name for name, _, _ in region.layers] for region in regions] == [["body"], ["head.0", "head.2"]]
    close(compact(x), model(x))


ALIKE_AT_THE_EXAMPLE = {
    "patches of one size": (lambda h, x: h.view(x.size(0), -1).amax(1), (2, 3, 8, 8), (2, 3, 16, 16)),
    "squeeze of a batch of one": (lambda h, x: h[..., None, None].squeeze(), (2, 3, 8, 8), (1, 3, 8, 8)),
    "mean of everything": (lambda h, x: h - 2 * h.mean(dim=None, keepdim=True), (1, 3, 8, 8), (3, 3, 8, 8)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ALIKE_AT_THE_EXAMPLE)
def test_what_is_alike_at_the_example_alone(name):
    after, example, other = ALIKE_AT_THE_EXAMPLE[name]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, x):
            images = x.reshape(-1, 3, 8, 8) if name.startswith("patches") else x
            return after(self.body(images).mean((2, 3)), x)

    model, compact, _ = exported(Network(), torch.randn(example))
    for shape in (example, other):
        x = torch.randn(shape)
        assert compact(x).shape == model(x).shape
        close(compact(x), model(x))


def rows(h):
    return torch.arange(h.size(0))


READ_BY_INDEX = {
    "rows": lambda h: h[:, :, 0, 0],
    "channels": lambda h: (h[:, :3] * h[:, 3:]).flatten(1),
    "steps": lambda h: h[:, ::2, 1:-1].mean((2, 3)),
    "none and ellipsis": lambda h: h[..., None, 0],
    "a list": lambda h: h[:, [3, 0, 0]],
    "a tensor": lambda h: h[:, torch.tensor([3, 0, 0])],
    "an order": lambda h: h[h.mean((1, 2, 3)).argsort()],
    "channels by order": lambda h: h[rows(h)[:, None], h.mean((2, 3)).argsort(1)],
    "positions": lambda h: h[rows(h), h.mean((2, 3)).argmax(1)],
    "the last": lambda h: h[rows(h), -1],
    "the last of many": lambda h: h.flatten(1)[rows(h), -1],
    "a mask": lambda h: h[h > 0],
    "a mask of rows": lambda h: h[h.mean((1, 2, 3)) > -9],
    "a mask that was read by index": lambda h: h[(h > 0)[:, 0].any(2).any(1)],
    "an index of an index": lambda h: h[h.mean((1, 2, 3)).argsort()[rows(h).flip(0)]],
    "read by index alone": lambda h: h[rows(h)][rows(h)[rows(h)]],
    "a size": lambda h: h[:, : h.size(1) // 2],
    "a tuple": lambda h: h.mean((2, 3)).max(1)[0],
    "a tuple of tuples": lambda h: torch.split(h, 3, 1)[1].max(3)[0].max(2)[1],
    "gather": lambda h: h.flatten(1).gather(1, h.flatten(1).argsort(1)[:, :2]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", READ_BY_INDEX)
def test_results_that_are_read_by_index(name):
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Call(READ_BY_INDEX[name])
    model, compact, regions = exported(nn.Sequential(*layers), torch.randn(2, 3, 8, 8))
    assert regions
    assert compact.report.captured == "whole"
    x = torch.randn(5, 3, 8, 8)
    close(compact(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["an order", "a mask of rows", "a tensor"])
def test_a_layer_reads_what_was_read_by_index(name):
    before, after = nn.Conv2d(3, 6, 3, padding=1), nn.LazyConv2d(4, 3)
    model = nn.Sequential(before, nn.ReLU(), Call(READ_BY_INDEX[name]), after)
    model(torch.randn(2, 3, 8, 8))
    model, compact, regions = exported(model, torch.randn(2, 3, 8, 8))
    assert len(regions) == 2
    x = torch.randn(5, 3, 8, 8)
    close(compact(x), model(x))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@torch.no_grad()
def test_what_nothing_reads():
    """Layers and operations without a reader, before and behind regions."""

    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.unread, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(6, 5)

        def forward(self, x):
            h = nn.functional.leaky_relu(self.body(x))
            self.unread(h)
            result = self.head(h.amax((2, 3)))
            result.softmax(1).max(1)
            result.exp().shape  # noqa: B018
            return result

    model, compact, regions = exported(Unread(), torch.randn(2, 3, 8, 8))
    assert len(regions) == 2
    assert compact.report.captured == "whole"
    x = torch.randn(3, 3, 8, 8)
    close(compact(x), model(x))


@torch.no_grad()
def test_torch_exports_it_for_any_batch():
    _, compact, _ = exported(Head(FLATTEN["flatten"]), torch.randn(2, 3, 8, 8))
    program = torch.export.export(
        compact, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("images")},)
    )
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(program.module()(x), compact(x))
