"""The graph of an exported model, with the channels that each layer had and has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast
from xml.etree.ElementTree import Element

from torch import fx, nn

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import bare
from sparsefx.plot.boxes import FAINT, INK, LAYER, draw_legend, draw_node, size_of
from sparsefx.plot.layer_graph import LayerGraph, Node, layer_graph
from sparsefx.plot.layout import Point, lay_out
from sparsefx.plot.names import shortened
from sparsefx.plot.svg import Svg, add, add_title, finished, picture
from sparsefx.report.export_report import ExportReport, LayerChange

_MARGIN = 20.0
_HEAD = 56.0  # the title and the legend
_SECTION_HEAD = 30.0
_LEAST_WIDTH = 520.0
_A_ROW = 4  # layers of a section without a graph
_TITLE_LETTER = 8.8


@dataclass(frozen=True)
class _Section:
    """A part of the picture: its heading, its size in pixels, and what draws it into a group."""

    heading: str
    width: float
    height: float
    draw: Callable[[Element], None]


def graph(compact: nn.Module) -> Svg:
    """Draw an exported model: its layers, the edges between them, and their channels.

    Each Linear and Conv layer is a box with one bar for its input channels and one for its output channels.
    The bars show channels that were kept, removed, gathered from the stream that the layer reads, or
    scattered into the stream that it adds to. Other modules with parameters are boxes without bars.
    Activations and reshapes are left out. Where several results meet, the operation is named. If parts of the
    model stay Python, there is a drawing for each compiled part, followed by the layers that stay. The layers
    that were removed come last.

    Args:
        compact: what :func:`sparsefx.export` or :func:`sparsefx.load` returned.

    Raises:
        ArgumentError: ``compact`` has no report of an export.

    Example:
        >>> import torch, sparsefx
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> _ = net[0].weight.data[3:].zero_()
        >>> picture = sparsefx.plot.graph(sparsefx.export(net, (torch.randn(1, 4),)))
        >>> "8 → 3" in picture.text
        True
    """
    model = bare(compact) if isinstance(compact, nn.Module) else None
    report = getattr(model, "report", None)
    if model is None or not isinstance(report, ExportReport):
        raise ArgumentError(
            f"compact must be what sparsefx.export returned, got a {type(compact).__name__} that has no "
            "report of an export"
        )
    sections = list(_sections(model, report))
    title = (
        f"{type(model).__name__}: channels {report.channels_before:,} → {report.channels_after:,}, "
        f"parameters {report.parameters_before:,} → {report.parameters_after:,}"
    )
    width = max([_LEAST_WIDTH, _TITLE_LETTER * len(title), *(section.width for section in sections)])
    height = _HEAD + sum(_SECTION_HEAD + section.height + _MARGIN for section in sections)
    root = picture(title, width + 2 * _MARGIN, height)
    add(root, "text", title, x=_MARGIN, y=24, font_size=13, font_weight="bold", fill=INK)
    draw_legend(root, _MARGIN, 46)
    y = _HEAD
    for section in sections:
        _draw_section(root, section, y)
        y += _SECTION_HEAD + section.height + _MARGIN
    return finished(root)


def _draw_section(root: Element, section: _Section, y: float) -> None:
    group = add(root, "g", transform=f"translate({_MARGIN:.1f} {y:.1f})")
    heading = add(group, "text", shortened(section.heading, 140), y=16, font_size=11, fill=FAINT)
    add_title(heading, section.heading)
    section.draw(add(group, "g", transform=f"translate(0 {_SECTION_HEAD:.1f})"))


def _sections(compact: nn.Module, report: ExportReport) -> Iterator[_Section]:
    names = {module: name for name, module in compact.named_modules()}
    changes = {change.name: change for change in report.layers}
    drawn: set[str] = set()
    for name in report.graphs:
        part = cast(fx.GraphModule, compact.get_submodule(name))
        found = layer_graph(part, names, changes)
        drawn |= {node.title for node in found.nodes if node.kind == "layer"}
        yield _graph_section(name or "the whole model", found)
    left = [change for change in report.layers if change.after and change.name not in drawn]
    for opaque in report.opaque:
        heading = f"{opaque.name or 'the model'} stays Python: {opaque.reason}"
        yield _Section(heading, 0, 0, lambda group: None)
    if left:
        yield _list_section("layers outside of graphs", left)
    gone = [change for change in report.layers if change.after is None]
    if gone:
        yield _list_section("layers that are gone: removed, or taken apart", gone)


def _graph_section(heading: str, found: LayerGraph) -> _Section:
    layout = lay_out([size_of(node) for node in found.nodes], found.edges)

    def draw(group: Element) -> None:
        lines = "".join(map(_path, layout.lines))
        add(group, "path", d=lines, fill="none", stroke="#8c8c8c", stroke_width=1.2)
        for place, (x, y) in enumerate(layout.corners):
            moved = {"gathered": place in found.gathered, "scattered": place in found.scattered}
            draw_node(group, found.nodes[place], x, y, **moved)

    return _Section(heading, layout.width, layout.height, draw)


def _list_section(heading: str, changes: Sequence[LayerChange]) -> _Section:
    width, height = LAYER[0] + 12, LAYER[1] + 12

    def draw(group: Element) -> None:
        for number, change in enumerate(changes):
            row, column = divmod(number, _A_ROW)
            node = Node("layer", change.name, change=change)
            draw_node(group, node, column * width, row * height, gathered=False, scattered=False)

    rows = -(-len(changes) // _A_ROW)
    return _Section(heading, width * min(len(changes), _A_ROW), height * rows, draw)


def _path(points: Sequence[Point]) -> str:
    """A line through points that is vertical at each."""
    steps = ["M{:.1f} {:.1f}".format(*points[0])]
    for (x, y), (end_x, end_y) in pairwise(points):
        middle = (y + end_y) / 2
        curve = f"C{x:.1f} {middle:.1f} {end_x:.1f} {middle:.1f} {end_x:.1f} {end_y:.1f}"
        steps.append(f"V{end_y:.1f}" if x == end_x else curve)
    return "".join(steps)
