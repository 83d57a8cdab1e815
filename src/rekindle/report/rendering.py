# SPDX-License-Identifier: Apache-2.0
"""Reports as single HTML files: nothing comes from elsewhere, all text is escaped, and only the page's own script may run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rekindle.drawing.pictures import PALETTE
from rekindle.evaluation.verdict.telling import plain, signed
from rekindle.report.embedding import data_uri, fitted
from rekindle.report.page import Overview, Report
from rekindle.report.panels import Panel, drawn_panel, thinned
from rekindle.report.verdicts import VerdictRow, chance_note, covered, need_note, overall_sentence

TABLE_ROWS = 25  # of the table below each panel
WIDEST = 1400  # pixels of a picture inside the page
OVERVIEW_COLUMNS = ("method", "trained", "steps", "images", "time", "images/s", "memory", "final loss")


def render_report(report: Report) -> str:
    """Return the page of one run."""
    groups = _groups(report.rows)
    return _page(
        "report.html",
        report,
        report.curves,
        verdict=overall_sentence(report.rows),
        need=need_note(report.rows),
        chance=chance_note(report.rows),
        groups=groups,
        covered=covered(report.rows),
    )


def render_overview(overview: Overview) -> str:
    """Return the page of several runs."""
    rows = [row for run in overview.runs for row in run.rows]
    measured = list(dict.fromkeys((row.protocol, row.data) for row in rows))
    cells = {(run.name, (row.protocol, row.data)): row for run in overview.runs for row in run.rows}
    columns = [c for c in OVERVIEW_COLUMNS if any(run.facts.get(c) is not None for run in overview.runs)]
    return _page(
        "overview.html",
        overview,
        overview.curves,
        verdict=summary_of(overview),
        need="",
        chance=chance_note(rows),
        groups=_groups(rows),
        covered=covered(rows),
        measured=measured,
        cells=cells,
        columns=columns,
    )


def panel_svg(panel: Panel) -> str:
    """Return a panel of curves as an SVG file."""
    template = _environment().get_template("panel.svg")
    return template.render(panel=drawn_panel(panel))


def intervals_svg(rows: Sequence[VerdictRow]) -> list[str]:
    """Return the verdicts with their intervals as SVG files, one per scale."""
    template = _environment().get_template("intervals.svg")
    return [template.render(rows=own, scale=scale) for scale, own in _groups(rows)]


def summary_of(overview: Overview) -> str:
    """One sentence over several runs; its words are those over all looks together."""
    judged = [run for run in overview.runs if run.rows]
    if not judged:
        return "Nothing was compared."
    words = {run.name: {row.word_of_all for row in run.rows} for run in judged}
    better = [name for name, found in words.items() if found == {"better"}]
    worse = [name for name, found in words.items() if "worse" in found]
    parts = [f"{len(overview.runs)} runs, {len(judged)} of them compared with their base"]
    parts.append("better under all that was measured: " + (", ".join(better) or "none"))
    parts.append("worse under something: " + (", ".join(worse) or "none"))
    for word, told in (("equivalent", "equivalent under all"), ("cannot judge", "nothing can be judged")):
        named = [name for name, found in words.items() if found == {word}]
        parts += [f"{told}: {', '.join(named)}"] if named else []
    return "; ".join(parts) + "."


def _page(template: str, page: Report | Overview, curves: Mapping[str, Sequence[Panel]], **values: Any) -> str:
    environment = _environment()
    script = environment.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawn = {heading: [drawn_panel(panel) for panel in panels] for heading, panels in curves.items()}
    data = [
        {
            "steps": panel.steps,
            "first": panel.first,
            "last": panel.last,
            "lines": [line.values for line in panel.lines],
        }
        for panels in drawn.values()
        for panel in panels
    ]
    return environment.get_template(template).render(
        page=page, curves=drawn, hover=data, script=script, script_hash=digest, **values
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rekindle.report", "templates"),
        autoescape=lambda name: name is None or not name.endswith((".js", ".css")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda value, metric: plain(metric, value)
    environment.filters["signed"] = lambda value, metric: signed(metric, value)
    environment.filters["embed"] = lambda pixels, kind="photo": data_uri(fitted(pixels, WIDEST), kind)
    environment.filters["code"] = _with_code
    environment.filters["value"] = lambda value: "none" if value is None else f"{value:.5g}"
    environment.globals["palette"] = PALETTE
    environment.globals["table_rows"] = lambda count: thinned(count, TABLE_ROWS)
    return environment


def _with_code(text: str) -> Markup:
    """Escape a message, and set what stands between back quotes as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _groups(rows: Sequence[VerdictRow]) -> list[tuple[float, list[VerdictRow]]]:
    """Verdicts that share a scale, with half its width: all fractions together, any other metric by itself."""
    groups: dict[str, list[VerdictRow]] = {}
    for row in rows:
        groups.setdefault("" if row.is_fraction else row.metric, []).append(row)
    return [(half_width(own), own) for own in groups.values()]


def half_width(rows: Sequence[VerdictRow]) -> float:
    """Half the width of the interval plot: the farthest end of an interval and a tenth more."""
    ends = [abs(value) for row in rows for value in row.ends]
    return 1.1 * max([*ends, 0.005 if rows[0].is_fraction else 1e-12])
