"""The report needs nothing from outside and shows text as text."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
from voxelwise.pipeline.evaluation.report import commands, contents, figure, page, paragraph, section, table


class Balance(HTMLParser):
    """Counts open elements; void ones have no end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_fetches_nothing() -> None:
    blocks = [
        contents([("one", "First")]),
        section("First", [paragraph("text"), figure(b"\x89PNG", text="a picture", caption="below")], anchor="one"),
        table(["case", "Dice"], [["a", 0.5], ["b", math.nan]], caption="scores", strong=[0]),
        commands("voxelwise predict RUN scans out"),
    ]
    document = page("Report", blocks, lead="One sentence.")
    parser = Balance()
    parser.feed(document)
    assert parser.open == []
    assert not re.search(r"(src|href)=\"(?!data:|#)", document)
    assert "http" not in document.replace("http-equiv", "")
    assert "default-src 'none'" in document
    assert "prefers-color-scheme: dark" in document


def test_text_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    shown = [
        paragraph(evil),
        table([evil], [[evil]], caption=evil),
        figure(b"", text=evil),
        section(evil, []),
        page(evil, []),
    ]
    assert all("<script>" not in block for block in shown)


def test_numbers_are_aligned_and_missing_ones_shown() -> None:
    block = table(["case", "Dice", "n"], [["a", 0.98765, 3], ["b", None, 4], ["c", -0.5, 5]], digits=[None, 2, None])
    assert block.count('class="number"') == 2 * 4
    assert ">0.99<" in block
    assert ">–<" in block
    assert ">−0.50<" in block


def test_rows_must_fit() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells does not fit 2 columns"):
        table(["a", "b"], [[1]])
