"""The drawing of an export: well-formed, complete, and with the report's counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from networks import build, empty
from torch import Tensor, nn
from torch.nn import functional as F

import sparsefx
from sparsefx import ArgumentError, ExportReport, plot

SVG = "{http://www.w3.org/2000/svg}"


def export(model: nn.Module, *inputs: Any, **options: Any) -> nn.Module:
    return sparsefx.export(model, inputs, gather="always", round_groups="never", **options)


def boxes(picture: plot.Svg) -> list[list[str]]:
    """The texts of every node that is drawn, in order."""
    groups = ElementTree.fromstring(picture.text).iter(f"{SVG}g")
    own = [[text.text or "" for text in group.findall(f"{SVG}text")] for group in groups]
    return [texts for texts in own if texts]


def layers(picture: plot.Svg) -> dict[str, list[str]]:
    """The counts of input and output channels written in each layer's box, by its first text."""
    return {texts[0]: [texts[-3], texts[-1]] for texts in boxes(picture) if "in" in texts and "out" in texts}


def nodes(picture: plot.Svg) -> list[str]:
    """The first text of every node."""
    return [texts[0] for texts in boxes(picture)]


def expected(report: ExportReport) -> dict[str, list[str]]:
    found = {}
    for change in report.layers:
        sides = [change.before, change.after]
        inputs, outputs = (
            [y.in_channels if y else 0 for y in sides],
            [y.out_channels if y else 0 for y in sides],
        )
        pairs = (inputs, outputs)
        found[change.name] = [f"{b:,} → {a:,}" if b else f"{a:,}" for b, a in pairs]
    return found


class Residual(nn.Module):
    """A stream of 8 channels to which a block of two convolutions writes some."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.two = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.one.weight[:, :3] = 0
            self.one.weight[4:] = 0
            self.two.weight[:2] = 0

    def forward(self, x: Tensor) -> Tensor:
        stream = F.relu(self.stem(x))
        stream = stream + self.two(F.relu(self.one(stream)))
        return self.head(F.adaptive_avg_pool2d(stream, 1).reshape(x.shape[0], -1))


def test_a_residual_block_by_hand() -> None:
    picture = plot.graph(export(Residual(), torch.randn(2, 3, 8, 8)))
    assert nodes(picture)[1:] == ["x", "stem", "gather 5", "one", "two", "scatter 6", "head", "output"]
    assert layers(picture) == {
        "stem": ["3 → 3", "8 → 8"],
        "one": ["8 → 5", "6 → 4"],
        "two": ["6 → 4", "8 → 6"],
        "head": ["8 → 8", "5 → 5"],
    }


def colours(picture: plot.Svg, layer: str) -> list[str]:
    """The colours of a layer's bars, from the upper left to the lower right."""
    for group in ElementTree.fromstring(picture.text).iter(f"{SVG}g"):
        texts = [text.text for text in group.findall(f"{SVG}text")]
        if texts[:1] == [layer]:
            return [rect.attrib["fill"] for rect in group.findall(f"{SVG}rect")[1:]]
    raise AssertionError(layer)


def test_what_is_kept_moved_and_removed_has_its_colour() -> None:
    from sparsefx.plot.palette import KEPT, MOVED, REMOVED

    picture = plot.graph(export(Residual(), torch.randn(2, 3, 8, 8)))
    assert colours(picture, "stem") == [KEPT, KEPT]
    assert colours(picture, "one") == [MOVED, REMOVED, KEPT, REMOVED]
    assert colours(picture, "two") == [KEPT, REMOVED, MOVED, REMOVED]


def test_bars_are_as_long_as_the_counts_say() -> None:
    picture = plot.graph(export(Residual(), torch.randn(2, 3, 8, 8)))
    for group in ElementTree.fromstring(picture.text).iter(f"{SVG}g"):
        if [text.text for text in group.findall(f"{SVG}text")][:1] == ["one"]:
            widths = [float(rect.attrib["width"]) for rect in group.findall(f"{SVG}rect")[1:]]
    assert widths == [62.5, 37.5, 66.7, 33.3]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mlp", 8),
        ("lenet5", 32),
        ("residual", 32),
        pytest.param("mobile_net", 32, marks=pytest.mark.slow),
        pytest.param("squeezenet", 32, marks=pytest.mark.slow),
    ],
)
def test_the_layers_of_networks_have_the_counts_of_the_report(name: str, size: int) -> None:
    compact = export(build(name, "both").float(), torch.randn(2, 3, size, size))
    assert isinstance(compact.report, ExportReport)
    picture = plot.graph(compact)
    assert layers(picture) == expected(compact.report)
    assert compact.report.opaque == ()
    assert "stays Python" not in picture.text


@pytest.mark.slow
def test_a_resnet_50() -> None:
    compact = export(build("resnet50", "both").float(), torch.randn(2, 3, 32, 32))
    assert layers(plot.graph(compact)) == expected(compact.report)


def test_many_layers_of_any_name() -> None:
    hostile = ["<script>alert('&')</script>", "it's", "]]>", "bell\a", "delete\x7f"]
    net = nn.Sequential()
    for number in range(150):
        net.add_module(hostile[number] if number < 5 else f"fc{number}", nn.Linear(4, 4))
    compact = export(net, torch.randn(2, 4))
    found = layers(plot.graph(compact))
    assert len(found) == 150
    shown = [name for name in found if not name.startswith("fc")]
    assert shown == [*hostile[:3], *(f"{name}\N{REPLACEMENT CHARACTER}" for name in ("bell", "delete"))]


def test_attention_and_joins_are_drawn_and_its_projections_are_new() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    empty(model, "rows")
    picture = plot.graph(export(model, torch.randn(2, 5, 8)))
    assert {"scaled dot product attention", "norm1", "norm2"} <= set(nodes(picture))
    assert layers(picture)["self_attn.q_proj"] == ["8", "8"]


class Counts(nn.Module):
    """Its forward branches on data, so that only its parts become graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.alone = nn.Linear(4, 3)
        with torch.no_grad():
            self.body[0].weight[5:] = 0
            self.body[0].bias[5:] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.alone(x) if bool(x.sum() > 0) else -self.alone(x)


def test_parts_of_a_model_that_stays_python() -> None:
    with pytest.warns(UserWarning, match="its forward stays Python"):
        compact = export(Counts(), torch.randn(2, 4))
    picture = plot.graph(compact)
    assert layers(picture) == {
        "body.0": ["4 → 4", "8 → 5"],
        "body.2": ["8 → 5", "4 → 4"],
        "alone": ["4 → 4", "3 → 3"],
    }
    headings = nodes(picture)
    assert headings.index("body") < headings.index("body.0") < headings.index("layers outside of graphs")
    assert any(heading.startswith("the model stays Python: ") for heading in headings)


class Takes(nn.Module):
    """Uses the selections and sums of indices that users write."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.call = nn.Linear(4, 4), call
        self.register_buffer("index", torch.tensor([0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.fc(x), self.index)


@pytest.mark.parametrize(
    ("call", "drawn"),
    [
        (lambda x, index: torch.index_select(x, 1, index), ["gather 2"]),
        (lambda x, index: torch.index_select(x, dim=1, index=index), []),
        (lambda x, index: torch.index_add(x, 1, index, x[:, :2]), ["scatter 2"]),
        (lambda x, index: torch.index_select(x, 1, (x[0] * 0).long()), []),
    ],
)
def test_indices_of_the_models_own(call: Callable[[Tensor, Tensor], Tensor], drawn: list[str]) -> None:
    picture = plot.graph(export(Takes(call), torch.randn(2, 4)))
    assert [node for node in nodes(picture) if node.split()[0] in ("gather", "scatter")] == drawn


def test_layers_that_are_gone_are_listed() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    compact = export(net, torch.randn(2, 4))
    compact.report = sparsefx.report(nn.Sequential(*net, nn.Linear(2, 7)), compact)
    picture = plot.graph(compact)
    assert layers(picture)["3"] == ["2 → 0", "7 → 0"]
    assert "layers that are gone: removed, or taken apart" in nodes(picture)


def test_a_model_that_trains_on_in_both_modes() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    compact = export(net, torch.randn(4, 4), fold_batchnorm=False)
    assert nodes(plot.graph(compact.train())) == nodes(plot.graph(compact.eval()))
    assert "1" in nodes(plot.graph(compact))


def test_loaded_and_compiled_models_are_drawn_alike(tmp_path: Path) -> None:
    compact = export(Residual(), torch.randn(2, 3, 8, 8))
    sparsefx.save(compact, tmp_path / "compact")
    for other in (sparsefx.load(tmp_path / "compact", Residual()), torch.compile(compact)):
        assert layers(plot.graph(other)) == layers(plot.graph(compact))


def test_the_picture_is_self_contained_and_can_be_saved(tmp_path: Path) -> None:
    picture = plot.graph(export(Residual(), torch.randn(2, 3, 8, 8)))
    assert picture._repr_svg_() == picture.text
    path = picture.save(tmp_path / "graph.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    assert not {"href", "src"} & {name.split("}")[-1] for element in root.iter() for name in element.attrib}
    assert not {element.tag.split("}")[-1] for element in root.iter()} & {"script", "style", "image", "use"}
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert (width, height) == (float(root.attrib["width"]), float(root.attrib["height"]))


@pytest.mark.parametrize("wrong", [nn.ReLU(), 3])
def test_what_is_no_export_is_refused(wrong: Any) -> None:
    message = (
        f"compact must be what sparsefx.export returned, got a {type(wrong).__name__} that has no report"
    )
    with pytest.raises(ArgumentError, match=message):
        plot.graph(wrong)
