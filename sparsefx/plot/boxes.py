"""How the nodes of a layer graph look."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from sparsefx.plot.counts import Counts, of_change
from sparsefx.plot.layer_graph import Node
from sparsefx.plot.names import shortened
from sparsefx.plot.palette import KEPT, MOVED, NEW, REMOVED
from sparsefx.plot.svg import add, add_title
from sparsefx.report.export_report import LayerChange

LAYER = (216.0, 58.0)
INK, FAINT = "#222222", "#6b6b6b"
_MODULE = (LAYER[0], 32.0)
_LOW = 20.0  # height of all other nodes
_BAR = (30.0, 100.0)  # where in a layer's box a bar starts, and how long it is
_LETTER = 5.6  # width of a letter of size 10
_BOLD_LETTER = 7.0  # of size 11


def size_of(node: Node) -> tuple[float, float]:
    """A node's width and height in pixels."""
    if node.kind == "layer":
        return LAYER
    return _MODULE if node.kind == "module" else (16 + _LETTER * len(shortened(node.title, 30)), _LOW)


def draw_node(parent: Element, node: Node, x: float, y: float, *, gathered: bool, scattered: bool) -> None:
    """Draw a node with its upper left corner at (x, y).

    Args:
        parent: what to draw it into.
        node: the node.
        x: in pixels.
        y: in pixels.
        gathered: whether its inputs are gathered channels.
        scattered: whether its outputs are added to some channels of what is there.
    """
    group = add(parent, "g", transform=f"translate({x:.1f} {y:.1f})")
    width, height = size_of(node)
    if node.kind == "layer" and node.change is not None:
        _frame(group, width, height, "white")
        _names(group, node)
        _bars(group, node.change, gathered, scattered)
    elif node.kind == "module":
        _frame(group, width, height, "#f4f4f4")
        _names(group, node)
    else:
        moved = node.kind in ("gather", "scatter")
        _frame(group, width, height, MOVED if moved else "#ececec", radius=height / 2)
        text = shortened(node.title, 30)
        add(group, "text", text, x=width / 2, y=14, font_size=10, text_anchor="middle", fill=INK)


def draw_legend(parent: Element, x: float, y: float) -> None:
    """Say what the colours mean."""
    meanings = {"kept": KEPT, "gathered or scattered": MOVED, "removed": REMOVED, "in a new layer": NEW}
    for meaning, colour in meanings.items():
        add(parent, "rect", x=x, y=y - 9, width=10, height=10, fill=colour)
        add(parent, "text", meaning, x=x + 15, y=y, font_size=10, fill=INK)
        x += 32 + _LETTER * len(meaning)


def _frame(group: Element, width: float, height: float, fill: str, radius: float = 4) -> None:
    add(group, "rect", width=width, height=height, rx=radius, fill=fill, stroke="#9a9a9a")


def _names(group: Element, node: Node) -> None:
    add_title(group, f"{node.title} ({node.what})" if node.what else node.title)
    letters = int((size_of(node)[0] - 16) / _BOLD_LETTER)
    add(group, "text", shortened(node.title, letters), x=8, y=14, font_size=11, font_weight="bold", fill=INK)
    add(group, "text", shortened(node.what, letters), x=8, y=26, font_size=9, fill=FAINT)


def _bars(group: Element, change: LayerChange, gathered: bool, scattered: bool) -> None:
    inputs, outputs = of_change(change)
    for label, y, counts, moved in (("in", 32, inputs, gathered), ("out", 44, outputs, scattered)):
        add(group, "text", label, x=8, y=y + 8, font_size=9, fill=FAINT)
        _bar(group, y, counts, MOVED if moved else KEPT)
        text = f"{counts.before:,} → {counts.after:,}" if counts.before else f"{counts.after:,}"
        add(group, "text", text, x=sum(_BAR) + 6, y=y + 8, font_size=10, fill=INK)


def _bar(group: Element, y: float, counts: Counts, kept: str) -> None:
    x, length = _BAR
    for count, colour in ((counts.kept, kept), (counts.new, NEW), (counts.gone, REMOVED)):
        part = length * count / max(1, sum(counts))
        if count:
            add(group, "rect", x=x, y=y, width=part, height=9, fill=colour)
        x += part
