"""Pictures are well-formed whatever they say."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties import properties

from sparsefx._common.table import printable
from sparsefx.errors import ArgumentError
from sparsefx.plot.svg import add, finished, picture


@properties()
@given(st.text())
@example("]]><script>&\0\ud800\ufffe\n\"'")
def test_any_text_is_only_text(text: str) -> None:
    root = picture(text, 10, 20.25)
    add(root, "text", text, text_anchor=text, x=1 / 3)
    parsed = ElementTree.fromstring(finished(root).text.encode())
    assert [child.tag.split("}")[1] for child in parsed] == ["title", "rect", "text"]
    assert (parsed[0].text or "") == (parsed[2].text or "") == printable(text)
    assert parsed[2].attrib == {"text-anchor": printable(text), "x": "0.3"}
    assert parsed.attrib["height"] == "20.2"


@pytest.mark.parametrize("name", ["graph.png", "graph.PDF"])
def test_no_svg_under_the_name_of_another_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"path=.* is SVG; call it graph\.svg"):
        finished(picture("", 1, 1)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())
