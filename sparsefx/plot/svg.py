"""Vector pictures, written with the standard library alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from sparsefx._common.table import printable
from sparsefx.errors import ArgumentError


@dataclass(frozen=True)
class Svg:
    """A picture that notebooks show and browsers open; it loads nothing from elsewhere.

    Attributes:
        text: the SVG document.
    """

    text: str = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture to a file and return its path.

        Raises:
            ArgumentError: the name ends like that of another format.
        """
        target = Path(path)
        if target.suffix.lower() not in ("", ".svg"):
            raise ArgumentError(f"path={str(path)!r}: the picture is SVG; call it {target.stem}.svg")
        target.write_text(self.text, encoding="utf-8", newline="\n")
        return target

    def _repr_svg_(self) -> str:
        return self.text


def picture(title: str, width: float, height: float) -> Element:
    """An empty picture with a white ground.

    Args:
        title: what it shows, for those who do not see it.
        width: in pixels.
        height: in pixels.
    """
    size = {"width": _value(width), "height": _value(height), "viewBox": f"0 0 {width:.1f} {height:.1f}"}
    about = {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "font-family": "Arial, sans-serif"}
    root = Element("svg", {**about, **size})
    add_title(root, title)
    add(root, "rect", width=width, height=height, fill="white")
    return root


def add(parent: Element, tag: str, text: str = "", **attributes: str | float) -> Element:
    """Add an element; the underscores of attribute names become hyphens, and text is escaped."""
    named = {name.replace("_", "-"): _value(value) for name, value in attributes.items()}
    element = ElementTree.SubElement(parent, tag, named)
    element.text = printable(text) or None
    return element


def add_title(element: Element, text: str) -> None:
    """What is shown while the pointer rests on an element."""
    add(element, "title", text)


def finished(root: Element) -> Svg:
    """The picture as a document."""
    return Svg(ElementTree.tostring(root, encoding="unicode"))


def _value(value: str | float) -> str:
    return printable(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
