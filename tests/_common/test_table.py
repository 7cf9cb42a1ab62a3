"""Tables as text and as HTML: the same cells, and nothing in them that acts."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from properties import properties
from torch import nn

import sparsefx
from sparsefx import SpeedupEstimate
from sparsefx._common.table import Table, printable
from sparsefx.analyses.anova import two_way_anova
from sparsefx.analyses.comparison import Comparison
from sparsefx.analyses.layer_densities import LayerDensities
from sparsefx.analyses.specialisation import LayerSpecialisation, Specialisation


class Cells(HTMLParser):
    """The text of every cell, by row, and all tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_html_by_hand() -> None:
    table = Table(["layer", "in", ""], [["<b>", "3", "4"]], ["a & b", "c"])
    left, right = 'style="text-align: left"', 'style="text-align: right"'
    assert table.to_html() == (
        f'<table><thead><tr><th colspan="1" {left}>layer</th><th colspan="2" {right}>in</th></tr></thead>'
        f"<tbody><tr><td {left}>&lt;b&gt;</td><td {right}>3</td><td {right}>4</td></tr></tbody></table>"
        "<p>a &amp; b<br>c</p>"
    )


@properties()
@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
@example([["</td><script>alert(1)</script>", "\0\ud800\a"]])
def test_cells_are_text_whatever_they_hold(rows: list[list[str]]) -> None:
    page = Table(["one", "two"], rows).to_html()
    page.encode("utf-8")
    found = Cells(page)
    assert found.rows == [["one", "two"], *([printable(cell) for cell in row] for row in rows)]
    assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td"}


def test_what_cannot_be_printed_is_replaced() -> None:
    mark = "\N{REPLACEMENT CHARACTER}"
    assert printable("a b\n\0\ud800é") == f"a b{mark * 3}é"


def test_reports_show_in_notebooks_what_they_print() -> None:
    net = nn.Sequential()
    net.add_module("<i>first</i>", nn.Linear(4, 8))
    net.add_module("second", nn.Linear(8, 2))
    for report in (sparsefx.report(net), sparsefx.report(net, net, example_inputs=(torch.randn(1, 4),))):
        rows = Cells(report._repr_html_()).rows
        assert [row[0] for row in rows] == ["layer", "<i>first</i>", "second"]
        assert all(cell in str(report) for row in rows[1:-1] for cell in row)
        assert "<i>" not in report._repr_html_()


def test_an_export_says_in_notebooks_what_its_passes_did() -> None:
    compact = sparsefx.export(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (torch.randn(1, 4),))
    for step in compact.report.passes:
        assert f"{step.name}: " in compact.report._repr_html_()


ANOVA = two_way_anova({(a, b): [1.0, 2.0, 4.0] for a in "ab" for b in "cd"})


@pytest.mark.parametrize(
    ("shown", "cells"),
    [
        (SpeedupEstimate(1.0, 2.0, 3.0, 4.0, {}), ["1.00x", "4.00x"]),
        (LayerDensities(("fc",), (4,), (7,), torch.tensor([[0.5]])), ["fc", "7", "0.5000"]),
        (Specialisation(2, (LayerSpecialisation("fc", 3, torch.arange(1), torch.ones(1)),)), ["fc", "3"]),
        (ANOVA, ["interaction", "residual"]),
        (Comparison((), ANOVA), ["distance", "residual"]),
        (Comparison((), None), ["distance"]),
    ],
)
def test_analyses_show_in_notebooks_what_they_print(shown: Any, cells: list[str]) -> None:
    found = [cell for row in Cells(shown._repr_html_()).rows for cell in row]
    assert set(cells) <= set(found)
    assert all(cell in str(shown) for cell in found)
