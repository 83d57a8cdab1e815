# SPDX-License-Identifier: Apache-2.0
"""All that a report says of one run, gathered; and of several, side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rekindle.core.errors import RekindleError
from rekindle.data.images import find_images
from rekindle.drawing.pictures import GAP, Bytes
from rekindle.engine.watcher import Watcher
from rekindle.pretraining.feeding import few_views
from rekindle.report.comparisons import (
    MeasuredModel,
    class_tables,
    compare_command,
    find_comparisons,
    metric_lines,
    verdict_rows,
)
from rekindle.report.cost import cost_facts, cost_numbers
from rekindle.report.curves import overlaid, run_curves
from rekindle.report.images import draw_cards
from rekindle.report.options import ReportOptions
from rekindle.report.page import Figure, Overview, Report, RunLine, Setting
from rekindle.report.record import RunRecord, read_record

VIEWED = 4  # images of which the views are shown
CURVES = "curves"  # the picture of a run that the report draws itself


def report_of(options: ReportOptions, watcher: Watcher) -> Report:
    """Gather the report of one run. Raises RequestError for what is no run, or a comparison that is not about it."""
    record = read_record(options.runs[0])
    measured = find_comparisons(record, options.comparison)
    watcher.message(f"comparisons: {', '.join(str(m.path) for m in measured) or 'none'}")
    cards, notes = draw_cards(record, measured, options, watcher)
    curves = run_curves(record)
    views = _views(record)
    return Report(
        title=f"Rekindle: {record.name}",
        lead=_lead(record),
        rows=[row for m in measured for row in verdict_rows(m)],
        missing=[*record.missing, *curves.missing],
        compared=[_compared(m) for m in measured],
        notes=[note for m in measured for note in m.comparison.notes],
        metrics=[line for m in measured for line in metric_lines(m)],
        classes=[table for m in measured for table in class_tables(m)],
        cards=cards,
        maps_note=notes,
        curves=curves.panels,
        constants=curves.constants,
        warnings=record.warnings,
        views=views,
        drawn=_drawn(record),
        predicted=_maps(measured),
        skipped=record.skipped,
        cost=cost_facts(record),
        environment=_environment(record),
        origin=_origin(record),
        commands=_commands(record, measured),
        settings=_settings(record),
        settings_note=_settings_note(record),
    )


def overview_of(options: ReportOptions, watcher: Watcher) -> Overview:
    """Gather the page of several runs."""
    records = [read_record(path) for path in options.runs]
    names = distinct_names([record.folder.path for record in records])
    lines, missing = [], []
    commands: dict[str, str] = {}
    notes: list[str] = []
    bases: dict[str, str] = {}
    for record, name in zip(records, names, strict=True):
        measured = find_comparisons(record, options.comparison)
        watcher.message(f"{name}: comparisons: {', '.join(str(m.path) for m in measured) or 'none'}")
        rows = [row for m in measured for row in verdict_rows(m, name)]
        notes += [note for m in measured for note in m.comparison.notes if note not in notes]
        facts: dict[str, str | float | None] = dict(cost_numbers(record))
        if record.options is not None:
            facts |= {"method": record.options.method, "trained": record.options.train}
        lines.append(RunLine(name, facts, rows))
        missing += [f"{name}: {text}" for text in [*record.missing, *run_curves(record).missing]]
        commands |= {f"{name}: {title}": text for title, text in _commands(record, measured).items()}
        if record.description is not None:
            bases[name] = str(record.description["base"]["sha256"])
    if len(set(bases.values())) > 1:
        notes.append("The runs started from different bases: each difference is to its own.")
    if len({line.facts.get("method") for line in lines}) > 1:
        notes.append("Losses of different methods measure different things and cannot be compared with one another.")
    return Overview(
        title=f"Rekindle: {len(lines)} runs side by side",
        lead=", ".join(names),
        runs=lines,
        missing=missing,
        curves=overlaid(records, names),
        notes=notes,
        commands=commands,
    )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number + 1})" for number, part in enumerate(parts)]


def _lead(record: RunRecord) -> str:
    options = record.options
    if options is None:
        return "A run whose configuration cannot be read by this version."
    moved = {"adapters": "adapters alone", "norm": "layer norms alone", "all": "all weights"}[options.train]
    base = Path(options.backbone).name if Path(options.backbone).exists() else options.backbone
    what = f"{options.method} on {Path(options.images).name or options.images}, from {base}; {moved} moved"
    total = int(record.description["steps"]) if record.description else options.steps
    of = f" of {total}" if total else ""
    return f"{what}, {record.steps_done}{of} steps of {options.batch_size} images, seed {options.seed}."


def _compared(measured: MeasuredModel) -> str:
    against = (
        "the base that the run started from"
        if measured.is_own_base
        else (f"{measured.comparison.base}, which is not the base that the run started from")
    )
    return f"Compared in {measured.path}, against {against}."


def _views(record: RunRecord) -> list[Figure]:
    """The views of a few images, as the run's options cut them."""
    if record.options is None:
        return []
    try:
        source = find_images(record.options.images)
        batch = few_views(record.options, source, min(VIEWED, len(source)))
    except RekindleError as error:
        record.missing.append(f"The views cannot be shown, as the images of the run are not there any more: {error}")
        return []
    large = batch.global_views.pixels
    rows = [_row([*large[:, b]]) for b in range(large.shape[1])]
    small = "no small ones"
    if batch.local_views is not None:
        local = batch.local_views.pixels
        rows = [_row([*large[:, b], *local[:, b]]) for b in range(large.shape[1])]
        small = f"{local.shape[0]} small ones of {local.shape[-1]} px"
    height = max(row.shape[0] for row in rows)
    canvas = np.concatenate(
        [np.pad(r, ((0, height - len(r) + GAP), (0, 0), (0, 0)), constant_values=255) for r in rows]
    )
    caption = (
        f"One row an image: two large views of {large.shape[-1]} px, {small}, with the run's crops and colours (drawn anew "
        "with its seed, not those of one step)."
    )
    return [Figure("The views the model saw", caption, canvas)]


def _row(views: Sequence[torch.Tensor]) -> Bytes:
    """Views [3, h, w] of any size beside each other on white."""
    height = max(view.shape[1] for view in views)
    cells = [
        np.pad(v.permute(1, 2, 0).numpy(), ((0, height - v.shape[1]), (0, GAP), (0, 0)), constant_values=255)
        for v in views
    ]
    return np.concatenate(cells, axis=1)


def _drawn(record: RunRecord) -> list[Figure]:
    """What the method drew at the end of its run."""
    found = []
    for path in sorted(record.folder.pictures.glob("*.png")):
        if path.stem != CURVES:
            found.append(Figure(f"Drawn by the method: {path.stem}", f"From {path.name} of the run.", _read(path)))
    return found


def _maps(measured: Sequence[MeasuredModel]) -> list[Figure]:
    """Confusion matrices and labelled images of the first seed, where the comparison drew them."""
    found = []
    for m in measured:
        for protocol in dict.fromkeys(row.protocol for row in m.rows):
            for stem, title in (("confusion", "Confusion of classes"), ("worst", "Worst images, labelled")):
                for side, model in (("base", m.comparison.base), ("adapted", m.model)):
                    results = m.results(model, protocol)
                    folder = m.path.parent / results[0].maps if results and results[0].maps else None
                    path = folder / f"{stem}.png" if folder is not None else None
                    if path is not None and path.is_file():
                        caption = f"{protocol} on {m.place}, seed {results[0].seed}."
                        found.append(Figure(f"{title}: {side}", caption, _read(path)))
    return found


def _read(path: Path) -> Bytes:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _environment(record: RunRecord) -> dict[str, str]:
    if not record.sessions:
        return {"recorded": "no: the run was made by a version that did not note its environment"}
    last = record.sessions[-1]
    software = last.get("software", {})
    facts = {"software": ", ".join(f"{name} {number}" for name, number in software.items())}
    for name, key in (("system", "system"), ("device", "device"), ("CUDA", "cuda"), ("started", "started")):
        if last.get(key):
            facts[name] = str(last[key])
    if "cores" in last:
        facts["processor"] = f"{last['cores']} cores, {last.get('threads', '?')} threads for torch"
    if "memory_bytes" in last:
        facts["memory"] = f"{last['memory_bytes'] / 2**30:.1f} GiB"
    if len(record.sessions) > 1:
        facts["starts"] = f"{len(record.sessions)}; the last one is described"
    return facts


def _origin(record: RunRecord) -> dict[str, str]:
    facts = {"run": str(record.folder.path)}
    training = next((line for line in record.log if " numbers train (" in line), None)
    if training is not None:
        facts["training"] = training
    told = record.description
    if told is not None:
        facts["base"] = f"{told['base']['name']} (hash {str(told['base']['sha256'])[:12]})"
        facts["licence of the base"] = str(told["base"]["licence"] or "not known")
        facts["model"] = f"hash {str(told['model_hash'])[:12]}"
    return facts


def _settings(record: RunRecord) -> list[Setting]:
    shown = {True: "yes", False: "no", None: "none"}
    return [
        Setting(
            name,
            shown[value] if isinstance(value, bool) or value is None else str(value),
            record.sources.get(name, ""),
            record.reasons.get(name, ""),
        )
        for name, value in record.settings.items()
    ]


def _settings_note(record: RunRecord) -> str:
    if not record.sources:
        return "What set each value was not recorded by the version that made this run."
    return (
        "default: the option's own; method: what the method needs; paper: its training from scratch; base: the run that this one "
        "goes on from; recipe: what suits this many images; file: the run file; asked: the command line or the call. "
        "Bold: not a default."
    )


def _commands(record: RunRecord, measured: Sequence[MeasuredModel]) -> dict[str, str]:
    found = {}
    starts = record.commands
    if starts:
        found["As it was started"] = "\n".join(starts)
    run = str(record.folder.path)
    found["From its configuration, whatever started it"] = shlex.join(
        ["rekindle", "pretrain", "--config", str(record.folder.config), "--out", f"{run.rstrip('/')}-again"]
    )
    for m in measured:
        title = "The comparison" if len(measured) == 1 else f"The comparison in {m.path.parent.name}"
        found[title] = compare_command(m, m.comparison.base, run)
    return found
