# SPDX-License-Identifier: Apache-2.0
"""The page: self-contained, escaped, and a headline that says what the rows say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rekindle.reporting.summary import Page, Picture, VerdictRow, overall, render, write_page

HOSTILE = '<script>alert("x")</script>&\'"><img src=https://evil.example/x.png>'


def row(
    verdict: str, protocol: str = "linear-seg", low: float = 0.01, high: float = 0.05, name: str = "disc"
) -> VerdictRow:
    return VerdictRow(protocol, "mIoU", verdict, 0.4, 0.43, 0.01, 0.02, 0.03, low, high, 0.95, per_class={name: 0.1})


def page(tmp_path: Path, text: str = "plain", rows: list[VerdictRow] | None = None) -> Page:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    picture = Picture(path, text, text)
    return Page(text, text, rows or [row("better", name=text)], [picture], {text: text}, text, text)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    tags = Tags(render(page(tmp_path, HOSTILE))).seen
    assert not [tag for tag, _ in tags if tag == "script"]
    assert [attrs["src"][:22] for tag, attrs in tags if tag == "img" and attrs["src"]] == ["data:image/png;base64,"]
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    text = render(page(tmp_path))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert "default-src 'none'" in text
    assert {name for _, attrs in Tags(text).seen for name in attrs} >= {"src"}


def test_the_picture_is_inside_byte_for_byte(tmp_path: Path) -> None:
    import base64

    content = page(tmp_path)
    data = base64.b64encode((tmp_path / "picture.png").read_bytes()).decode()
    write_page(content, tmp_path / "summary.html")
    assert data in (tmp_path / "summary.html").read_text(encoding="utf-8")


def test_the_verdict_stands_first_with_its_interval(tmp_path: Path) -> None:
    text = render(page(tmp_path))
    verdict = overall([row("better")])
    assert verdict == "The adapted model is better than its base under linear-seg (+1.0 to +5.0 points)."
    assert text.index(verdict) < text.index("<table>") < text.index("<img")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("worse", low=-0.05, high=-0.01)], "The adapted model is worse than its base"),
        (
            [row("no difference", low=-0.01)],
            "No difference between the adapted model and its base could be shown",
        ),
        (
            [row("better"), row("worse", "dense-retrieval", -0.02, -0.01)],
            "better under linear-seg (+1.0 to +5.0 points); worse",
        ),
    ],
)
def test_the_headline_says_no_more_than_the_rows(rows: list[VerdictRow], expected: str) -> None:
    assert expected in overall(rows)


def test_the_interval_is_drawn_where_it_lies(tmp_path: Path) -> None:
    """1 to 5 points on a scale of 1.1 * 5 points each side: 50 + 50 * 1 / 5.5 and 50 + 50 * 5 / 5.5."""
    bar = next(attrs for tag, attrs in Tags(render(page(tmp_path))).seen if attrs.get("class") == "bar")
    assert (bar["x1"], bar["x2"]) == ("59.09%", "95.45%")
