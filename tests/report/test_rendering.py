# SPDX-License-Identifier: Apache-2.0
"""The page: self-contained, escaped, and drawn where the numbers lie."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rekindle.evaluation.verdict.judging import Joint, Verdict
from rekindle.report.embedding import data_uri, fitted
from rekindle.report.page import Card, ClassTable, Figure, MetricLine, Overview, PicturePair, Report, RunLine, Setting
from rekindle.report.panels import Panel
from rekindle.report.rendering import half_width, intervals_svg, panel_svg, render_overview, render_report, summary_of
from rekindle.report.verdicts import VerdictRow, overall_sentence

HOSTILE = '</script><script>alert("x")</script>&\'"><img src=https://evil.example/x.png onerror=alert(1)>'
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def row(protocol: str = "linear-seg", name: str = "disc", low: float = 0.01, high: float = 0.05) -> VerdictRow:
    return VerdictRow(protocol, "mIoU", verdict(low, high, per_class={name: 0.1}), data="toy", notes=[name])


def verdict(low: float = 0.01, high: float = 0.05, **more: Any) -> Verdict:
    values: dict[str, Any] = {"verdict": "better", "difference": 0.03, "low": low, "high": high, "level": 0.95}
    values |= {"rule": "student", "units": 52, "items": 52, "evaluation_seeds": 3, "smallest_effect": 0.012}
    values |= {"units_for_half": 203, "base": 0.4, "model": 0.43, "base_std": 0.01, "model_std": 0.02, "per_class": {}}
    return Verdict.model_validate(values | more)


def report(text: str = "plain") -> Report:
    pair = PicturePair("tokens", text, PIXELS, PIXELS[::-1], is_grid=True)
    card = Card(text, "worst", text, PIXELS, (0.5, 0.25), {text: PIXELS}, [pair])
    return Report(
        title=text,
        lead=text,
        rows=[row(text, text)],
        missing=[text, "`code`"],
        compared=[text],
        notes=[text],
        metrics=[MetricLine(text, text, "mIoU", 0.4, 0.01, 0.5, 0.02, 3)],
        classes=[ClassTable(text, text, "mIoU", {text: (0.1, 0.2, 0.1), "other": (None, None, -0.1)})],
        cards=[card, card],
        maps_note=[text],
        curves={text: [Panel(text, [1, 2, 3], {text: [1.0, None, 2.0]}, text)]},
        constants={text: text},
        warnings=[text],
        views=[Figure(text, text, PIXELS)],
        drawn=[Figure(text, text, PIXELS, "map")],
        predicted=[Figure(text, text, PIXELS)],
        skipped=[text],
        cost={text: text},
        environment={text: text},
        origin={text: text},
        commands={text: text},
        settings=[Setting(text, text, "asked", text)],
        settings_note=text,
    )


def overview(text: str = "plain") -> Overview:
    run = RunLine(text, {"method": text, "steps": 3, "time": None}, [row(text, text)])
    panel = Panel(text, [1, 2], {text: [1.0, 2.0]})
    return Overview(text, text, [run, RunLine("b", {}, [])], [text], {text: [panel]}, [text], {text: text})


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("page", ["report", "overview"])
def test_hostile_text_stays_text(page: str) -> None:
    text = render_report(report(HOSTILE)) if page == "report" else render_overview(overview(HOSTILE))
    tags = Tags(text).seen
    assert len([tag for tag, _ in tags if tag == "script"]) == 2, "the data of the curves, and the page's own script"
    assert all((attrs["src"] or "").startswith("data:image/") for tag, attrs in tags if tag == "img")
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]


def test_hostile_text_in_svg_files_stays_text() -> None:
    for text in (panel_svg(report(HOSTILE).curves[HOSTILE][0]), *intervals_svg(report(HOSTILE).rows)):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
        assert tags <= {"svg", "rect", "line", "path", "circle", "text"}


def test_nothing_comes_from_outside_and_only_the_own_script_may_run() -> None:
    text = render_report(report())
    assert not re.search(r"https?:|src=\"//|url\(|@import", text)
    policy = next(a["content"] for _, a in Tags(text).seen if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script is not None and policy is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_verdict_stands_first_then_what_is_missing() -> None:
    text = render_report(report())
    sentence = overall_sentence(report().rows)
    assert sentence in text and "95 %: +1.0 to +5.0)" in sentence
    assert text.index(sentence) < text.index("What this page lacks") < text.index("<img") < text.index("<table")
    assert "<code>code</code>" in text


def test_a_report_of_nothing_is_a_page() -> None:
    text = render_report(Report(title="empty", lead=""))
    assert "Nothing was compared." in text and "<h2" in text
    assert "Nothing was compared." in render_overview(Overview("empty", "", []))


def test_the_interval_is_drawn_where_it_lies() -> None:
    """1 to 5 points on a scale of 1.1 * 5 points each side: 50 + 50 * 1 / 5.5 and 50 + 50 * 5 / 5.5."""
    bar = next(attrs for tag, attrs in Tags(render_report(report())).seen if attrs.get("class") == "bar")
    assert (bar["x1"], bar["x2"]) == ("59.09%", "95.45%")
    assert half_width([row()]) == pytest.approx(0.055)


def test_every_word_has_a_look_of_its_own_that_is_not_colour_alone() -> None:
    """A hollow dot on a broken bar, a shaded margin, a thin line for all looks; and the word beside each."""
    wide = Joint(verdict="no difference", low=-0.02, high=0.08, level=0.99, looks=2)
    words: dict[str, dict[str, Any]] = {
        "better": {"joint": wide},
        "worse": {},
        "no difference": {},
        "equivalent": {"margin": 0.06},
        "cannot judge": {"units": 12},
        "different": {},
    }
    rows = [replace(row(word), found=verdict(verdict=word, **more)) for word, more in words.items()]
    text, (svg,) = render_report(Report(title="t", lead="", rows=rows)), intervals_svg(rows)
    styles = re.search(r"<style>(.*?)</style>", text, re.S)
    for word in words:
        assert f'<span class="word {word.replace(" ", "-")}">{word}</span>' in text
        assert f": {word}</text>" in svg
        assert styles is not None and f".{word.replace(' ', '-')}" in styles[1]
    tags = Tags(text).seen
    assert (
        sum(attrs.get("class") == "margin" for _, attrs in tags) == sum(a.get("class") == "joint" for _, a in tags) == 1
    )
    assert svg.count('stroke-dasharray="5 4"') == 1 and svg.count('fill="#fff"') == 2  # the ground, and one dot
    assert "the shaded band the margin, a thin line the interval widened for all looks together. A broken bar" in text
    assert "Over all 2 looks together" not in text and "over all 2 looks together no difference (-2.0 to +8.0)" in text
    assert "12 images; a verdict needs 30" not in text and "52 images; a verdict needs 30 (or 8 groups)" in text
    plain = render_report(Report(title="t", lead="", rows=[row()]))
    assert "broken bar" not in plain and "margin." not in plain and "thin line" not in plain


def test_notes_and_needs_stand_by_their_row_and_under_the_sentence() -> None:
    found = replace(row(), found=verdict(-0.01, verdict="no difference"), notes=["Said by another."])
    text = render_report(Report(title="t", lead="", rows=[found]))
    need = "Effects below 1.2 points cannot be seen reliably with 52 images"
    assert f'<p class="note">{need}; about 200 would show 0.6.</p>' in text
    assert f'<p class="note remark">{need}. About 200 would show 0.6. Said by another.</p>' in text
    assert "3 evaluation seeds, and no other training: the word is about this run." in text


def test_an_overview_rests_on_the_words_over_all_looks() -> None:
    wide = Joint(verdict="no difference", low=-0.02, high=0.08, level=0.99, looks=2)
    runs = [
        RunLine("a", {}, [row()]),
        RunLine("b", {}, [replace(row(), found=verdict(joint=wide))]),
        RunLine("c", {}, [replace(row(), found=verdict(verdict="equivalent", margin=0.1))]),
        RunLine("d", {}, [replace(row(), found=verdict(verdict="cannot judge", units=3))]),
    ]
    assert summary_of(Overview("", "", runs)) == (
        "4 runs, 4 of them compared with their base; better under all that was measured: a; worse under something: none; "
        "equivalent under all: c; nothing can be judged: d."
    )


def test_metrics_with_units_have_a_scale_of_their_own() -> None:
    other = replace(row(), metric="MSE (log²)", found=verdict(-3.0, 2.0, difference=-1.0))
    assert len(intervals_svg([row(), other, row("b")])) == 2


def test_the_values_of_the_curves_are_in_the_page_for_hovering_and_for_screen_readers() -> None:
    text = render_report(report())
    data = re.search(r'<script type="application/json" id="curves">(.*?)</script>', text, re.S)
    assert data is not None
    assert json.loads(data[1])[0] == {"steps": [1, 2, 3], "first": 0, "last": 3, "lines": [[1.0, None, 2.0]]}
    assert '<th scope="row">2</th><td class="number">none</td>' in text


def test_a_map_keeps_every_colour_and_a_photo_is_small() -> None:
    grid = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    _, _, content = data_uri(grid, "map").partition("base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")), grid)
    smooth = np.tile(np.linspace(0, 1, 256)[None, :, None], (256, 1, 3))
    assert len(data_uri(smooth, "photo")) < 4_000


def test_pictures_are_never_enlarged_and_keep_their_shape() -> None:
    assert fitted(PIXELS, 100) is PIXELS
    assert fitted(np.zeros((100, 200, 3), np.uint8), 50).shape == (25, 50, 3)
