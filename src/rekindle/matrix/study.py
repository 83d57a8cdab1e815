# SPDX-License-Identifier: Apache-2.0
"""Study: a matrix for one question, its answer in words, and its curves.

- Forgetting (GLARE, section 9.3): continue on some images, measure on other data. "No score below the original, within the
  interval" is no forgetting. With adapters, switching them off must give the base back bit for bit: that is checked.
- Data scale (GLARE, section 9.4): continue on nested shares of the images without labels, measure with all labels.
- Label efficiency (LOCA, section 15.2): measure start and adapted models with nested shares of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml

from rekindle.core.files import write_atomically
from rekindle.core.options import Options
from rekindle.engine.watcher import LoggingWatcher, Watcher
from rekindle.evaluation.scores.result import write_json
from rekindle.evaluation.scores.score import is_fraction
from rekindle.evaluation.verdict.judging import Words
from rekindle.evaluation.verdict.overall import OverallWord, word_over
from rekindle.evaluation.verdict.telling import ORDER, size
from rekindle.matrix.adapters_off import AdaptersOff, adapters_off
from rekindle.matrix.columns import share_told
from rekindle.matrix.run import run_matrix
from rekindle.matrix.study_options import Kind, StudyOptions, study_grid
from rekindle.matrix.table import Table, number


class Point(Options):
    """One kind of training under one column, against the start under the same column."""

    share: float
    """Of the images (data-scale) or of the labels (label-efficiency); 1 where neither is varied."""
    start: float
    """Value of the start, mean over the evaluation seeds."""
    mean: float
    """Value of the trainings, mean over training and evaluation seeds."""
    difference: float
    """`mean` minus `start`."""
    low: float
    """Lower end of the interval of the difference."""
    high: float
    """Upper end."""
    verdict: Words
    """Of this column."""
    of_all: Words | None = None
    """The word over all columns of its row together; None for a single column, and in files of before."""
    smallest_effect: float | None = None
    """As of `Judged`."""

    @property
    def word(self) -> Words:
        """What the answer rests on."""
        return self.of_all or self.verdict


class Curve(Options):
    """What one way to adapt gives under one protocol and data set."""

    method: str
    """Name of the entry of `methods`."""
    panel: str
    """Protocol and data."""
    test: str
    """Name of the data; empty for those adapted to."""
    metric: str
    """What is measured."""
    points: list[Point]
    """By rising share."""


class Answer(Options):
    """What a study says of one way to adapt."""

    method: str
    """Name of the entry of `methods`."""
    verdict: Literal["no forgetting", "forgetting", "incomplete"] | OverallWord
    """The word."""
    sentence: str
    """One sentence."""


class Study(Options):
    """The answer to a study."""

    kind: Kind
    """Which question."""
    request: StudyOptions
    """What was asked."""
    is_complete: bool
    """Every training and measurement is there."""
    is_stopped: bool
    """It was interrupted; the same command goes on."""
    answers: list[Answer]
    """One per way to adapt."""
    curves: list[Curve]
    """One per way to adapt, protocol and data set."""
    adapters_off: list[AdaptersOff]
    """Of forgetting: whether each trained model without its adapters is its base."""
    interval: str
    """What the intervals cover."""


def run_study(options: StudyOptions, *, watcher: Watcher | None = None) -> tuple[Study, Table]:
    """Run what is missing of a study, and write study.json, study.md, curves.png and grid.yaml beside the table.

    Raises: RequestError before anything runs, as `run_matrix` does.
    """
    watcher = watcher or LoggingWatcher()
    grid, tree = study_grid(options)
    out = Path(grid.out)
    table = run_matrix(grid, f"study {options.kind}", watcher=watcher)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    write_atomically(out / "grid.yaml", lambda stream: stream.write(text.encode()))
    checked = adapters_off(grid, table, out, watcher) if options.kind == "forgetting" and table.is_complete else []
    study = study_of(options, table, checked)
    write_json(out / "study.json", study.model_dump(mode="json"))
    written = to_markdown(study)
    write_atomically(out / "study.md", lambda stream: stream.write(written.encode()))
    if any(curve.points for curve in study.curves):
        _draw(study, out / "curves.png")
    return study, table


def study_of(options: StudyOptions, table: Table, checked: Sequence[AdaptersOff] = ()) -> Study:
    """Read the answer off a table."""
    curves = curves_of(table)
    return Study(
        kind=options.kind,
        request=StudyOptions.model_validate(options.model_dump(include=set(StudyOptions.model_fields))),
        is_complete=table.is_complete,
        is_stopped=table.is_stopped,
        answers=[_answer(options.kind, method, curves, table) for method in dict.fromkeys(c.method for c in curves)],
        curves=curves,
        adapters_off=list(checked),
        interval=table.interval,
    )


def curves_of(table: Table) -> list[Curve]:
    """Group rows and columns into curves over the share that is varied: of the images, or of the labels."""
    points: dict[tuple[str, str, str], list[Point]] = {}
    metrics: dict[str, str] = {}
    for row in table.rows:
        for column in table.columns:
            curve = points.setdefault((row.method, column.panel, column.test), [])
            found = row.pooled.get(column.name)
            if found is None:
                continue
            metrics[column.panel] = table.headline(column.name).metric
            curve.append(
                Point(
                    share=column.train_fraction if column.is_one_of_shares else row.images,
                    start=found.start_mean,
                    mean=found.mean,
                    difference=found.difference,
                    low=found.low,
                    high=found.high,
                    verdict=found.verdict,
                    of_all=found.joint.verdict if found.joint else None,
                    smallest_effect=found.smallest_effect,
                )
            )
    return [
        Curve(
            method=method,
            panel=panel,
            test=test,
            metric=metrics.get(panel, ""),
            points=sorted(found, key=lambda p: p.share),
        )
        for (method, panel, test), found in points.items()
    ]


def to_markdown(study: Study) -> str:
    """The answers, the check of the adapters, and a table of all points; the picture beside it."""
    lines = [f"# Study: {study.kind}", ""]
    lines += [f"- {answer.method}: {answer.sentence}" for answer in study.answers]
    if study.adapters_off:
        lines += ["", *(f"- {check.sentence}" for check in study.adapters_off)]
    heading, *rows = point_table(study)
    lines += ["", *(f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows))]
    return "\n".join([*lines, "", study.interval, "", "![curves](curves.png)", ""])


def point_table(study: Study) -> list[list[str]]:
    """Return a heading, and one line per point."""
    share = {"data-scale": ["images"], "label-efficiency": ["labels"]}.get(study.kind, [])
    found = [["method", "measured by", *share, "start", "adapted", "difference", "interval", "verdict"]]
    for curve in study.curves:
        for p in curve.points:
            values = [number(curve.metric, v) for v in (p.start, p.mean)]
            change, low, high = (number(curve.metric, v, sign="+") for v in (p.difference, p.low, p.high))
            measured = f"{curve.panel} ({curve.metric}{', %' if is_fraction(curve.metric) else ''})"
            told = [share_told(p.share)] if share else []
            found.append([curve.method, measured, *told, *values, change, f"{low} to {high}", p.verdict])
    return found


def _answer(kind: Kind, method: str, curves: Sequence[Curve], table: Table) -> Answer:
    own = [curve for curve in curves if curve.method == method]
    rows = [row for row in table.rows if row.method == method]
    if any(row.waiting or row.failed for row in rows) or not all(curve.points for curve in own):
        missing = [f"{row.place} seed {seed}" for row in rows for seed in (*row.waiting, *row.failed)]
        return Answer(method=method, verdict="incomplete", sentence=f"incomplete: {', '.join(missing)} not done")
    if kind == "forgetting":
        return _forgotten(method, own)
    words = [point.word for curve in own for point in curve.points]
    told = "; ".join(f"{curve.panel}: {by_share({p.share: p.word for p in curve.points})}" for curve in own)
    what = "of the images" if kind == "data-scale" else "of the labels"
    sentence = f"against the start, by the share {what}: {told}"
    return Answer(method=method, verdict=word_over(words), sentence=sentence)


def _forgotten(method: str, curves: Sequence[Curve]) -> Answer:
    """No score below the original, within the interval, is no forgetting; the data adapted to are told of apart."""
    others = [curve for curve in curves if curve.test]
    worse, better, same, unjudged = (
        [curve for curve in others if curve.points[0].word == word]
        for word in ("worse", "better", "equivalent", "cannot judge")
    )
    judged = [curve for curve in others if curve not in unjudged]
    told = [f"worse than the start: {', '.join(map(_change, worse))}"] if worse else []
    if judged and not worse:
        told.append(f"nowhere below the start within the interval ({', '.join(map(_seen, judged))})")
    told += [f"better than the start: {', '.join(map(_change, better))}"] if better else []
    told += [f"equivalent to the start: {', '.join(map(_change, same))}"] if same else []
    told += [f"too little was measured to judge: {', '.join(map(_change, unjudged))}"] if unjudged else []
    own = [f"{curve.points[0].word} in {_change(curve)}" for curve in curves if not curve.test]
    told += [f"on the images adapted to: {', '.join(own)}"] if own else []
    word: Literal["no forgetting", "forgetting", "cannot judge"] = "forgetting" if worse else "no forgetting"
    word = word if judged else "cannot judge"
    return Answer(method=method, verdict=word, sentence=f"{word}: {'; '.join(told)}")


def _seen(curve: Curve) -> str:
    """Where, and which loss could have been seen there."""
    point = curve.points[0]
    if point.word != "no difference" or not point.smallest_effect:
        return curve.panel
    return f"{curve.panel}, where less than {size(curve.metric, point.smallest_effect)} cannot be seen reliably"


def _change(curve: Curve) -> str:
    return f"{curve.panel} ({number(curve.metric, curve.points[0].difference, sign='+')})"


def by_share(verdicts: Mapping[float, Words]) -> str:
    """Say which shares got which verdict.

    Example:
        >>> by_share({0.1: "no difference", 0.5: "better", 1.0: "better"})
        'better at 50 %, 100 %; no difference at 10 %'
    """
    told = []
    for word in ORDER:
        shares = [share_told(share) for share, found in verdicts.items() if found == word]
        if shares:
            told.append(f"{word} at {', '.join(shares)}")
    return "; ".join(told)


def _draw(study: Study, path: Path) -> None:
    from rekindle.drawing.study_curves import Line, StudyPanel, write_bars, write_study_curves

    panels: dict[str, list[Line]] = {}
    metrics: dict[str, str] = {}
    for curve in study.curves:
        if not curve.points:
            continue
        scale = 100.0 if is_fraction(curve.metric) else 1.0
        title = curve.panel if curve.test or study.kind != "forgetting" else f"{curve.panel} (adapted to)"
        metrics[title] = f"{curve.metric}, %" if scale == 100.0 else curve.metric
        points = curve.points
        line = Line(
            curve.method,
            shares=[p.share for p in points],
            start=[scale * p.start for p in points],
            values=[scale * p.mean for p in points],
            differences=[scale * p.difference for p in points],
            low=[scale * p.low for p in points],
            high=[scale * p.high for p in points],
            is_judged=[p.verdict != "cannot judge" for p in points],
        )
        panels.setdefault(title, []).append(line)
    drawn = [StudyPanel(name, metrics[name], lines) for name, lines in panels.items()]
    if study.kind == "forgetting":
        write_bars(path, drawn, level=study.request.level)
    else:
        what = "share of the images, %" if study.kind == "data-scale" else "share of the labels, %"
        write_study_curves(path, drawn, what, level=study.request.level)
