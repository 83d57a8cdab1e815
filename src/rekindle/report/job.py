# SPDX-License-Identifier: Apache-2.0
"""`rekindle report`: gather, render, write."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rekindle.core.errors import RequestError
from rekindle.core.files import write_atomically
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.report.content import overview_of, report_of
from rekindle.report.files import write_overview_pictures, write_report_pictures
from rekindle.report.options import ReportOptions
from rekindle.report.rendering import render_overview, render_report, summary_of
from rekindle.report.verdicts import VerdictRow, overall_sentence

NAME = "report.html"


@dataclass(frozen=True)
class Reported:
    """What `run_report` wrote.

    Attributes:
        page: the HTML file.
        bytes: its size.
        seconds: what it took.
        verdict: the sentence at its top.
        missing: what it lacks.
        rows: the verdicts.
        pictures: files beside it, where they were asked for.

    """

    page: Path
    bytes: int
    seconds: float
    verdict: str
    missing: list[str]
    rows: list[VerdictRow]
    pictures: list[Path]


def run_report(options: ReportOptions, *, watcher: Watcher | None = None) -> Reported:
    """Write the page that the options ask for. Raises RequestError for runs or comparisons that are none."""
    watcher, began = watcher or LoggingWatcher(), time.monotonic()
    page = page_path(options)
    if len(options.runs) == 1:
        report = report_of(options, watcher)
        text, verdict, missing, rows = (
            render_report(report),
            overall_sentence(report.rows),
            report.missing,
            [*report.rows],
        )
        files = write_report_pictures(report, Path(options.pictures)) if options.pictures else []
    else:
        overview = overview_of(options, watcher)
        text, verdict, missing = render_overview(overview), summary_of(overview), overview.missing
        rows = [row for run in overview.runs for row in run.rows]
        files = write_overview_pictures(overview, Path(options.pictures)) if options.pictures else []
    content = text.encode()
    write_atomically(page, lambda stream: stream.write(content))
    return Reported(page, len(content), time.monotonic() - began, verdict, [*missing], rows, files)


def page_path(options: ReportOptions) -> Path:
    """Where the page goes. Raises RequestError for runs that are not named or not there, and for a name that is no page's."""
    if not options.runs:
        raise RequestError("RUN is missing; name the folder of a run, or several: `rekindle report runs/mine`")
    for run in options.runs:
        if not Path(run).is_dir():
            raise RequestError(
                f"{run}: there is no such folder; give the folder of a run (--out of `rekindle pretrain`)"
            )
    if options.out:
        if not options.out.endswith((".html", ".htm")):
            raise RequestError(f"--out {options.out}: the report is one page; give a name that ends in .html")
        return Path(options.out)
    if len(options.runs) == 1:
        return Path(options.runs[0]) / NAME
    return Path(os.path.commonpath([Path(run).resolve().parent for run in options.runs])) / NAME
