# SPDX-License-Identifier: Apache-2.0
"""Curves of a report: every number of the logs, grouped; what is constant or not finite is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rekindle.report.panels import Panel, gaps, is_constant
from rekindle.report.record import RunRecord

LOSS, TARGETS, HEALTH = (
    "Loss, its terms, and what the method counts",
    "Entropy and divergence of the targets, in nats",
    "Rank, drift and health",
)
RATES, SPEED = "Learning rate, schedules and norms", "Speed and memory"
NOTES = {
    "loss": "what is minimised: the weighted sum",
    "lr": "of the largest group",
    "trained_norm": "norm of all that trains",
    "grad_norm": "before clipping",
    "data_wait": "share of the time",
    "images_per_s": "mean of the last steps",
}
TITLES = {
    "loss": "loss",
    "lr": "learning rate",
    "images_per_s": "images/s",
    "data_wait": "waiting for images",
    "memory_bytes": "memory, GiB",
    "grad_norm": "gradient norm",
    "trained_norm": "weight norm",
}
_RATES = ("lr", "weight_decay", "momentum", "teacher_temperature", "grad_norm", "trained_norm")
_SPEED = ("images_per_s", "data_wait", "memory_bytes")
_SHOWN_GAPS = 5


@dataclass
class Curves:
    """Panels by heading, what is constant, and what is to be told of values that are not finite."""

    panels: dict[str, list[Panel]] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def run_curves(record: RunRecord) -> Curves:
    """Return the curves of one run."""
    whole = int(record.description["steps"]) if record.description else 0
    found = Curves()
    columns = _columns(record.metrics, skip=("step", "speed", "epoch"))
    steps = [line["step"] for line in record.metrics]
    targets: dict[str, dict[str, list[float | None]]] = {}
    for name, values in columns.items():
        _note_gaps(found, name, steps, values)
        kind, _, of = name.partition("_")
        if kind in ("entropy", "divergence") and of:
            targets.setdefault(kind, {})[of] = values
        elif is_constant(values) and len(values) > 1:
            found.constants[TITLES.get(name, name)] = f"{values[0]:.5g}"
        else:
            _add(found, RATES if name in _RATES else LOSS, name, steps, values, whole)
    for kind, lines in targets.items():
        found.panels.setdefault(TARGETS, []).append(Panel(kind, steps, lines, whole=whole))
    speed = _columns([line.get("speed", {}) for line in record.metrics], skip=())
    for name in _SPEED:
        if name in speed:
            values = [v / 2**30 if name == "memory_bytes" and v is not None else v for v in speed[name]]
            _add(found, SPEED, name, steps, values, whole)
    at = [line["step"] for line in record.probes]
    for name, values in _columns(record.probes, skip=("step", "speed")).items():
        _note_gaps(found, name, at, values)
        _add(found, HEALTH, name, at, values, whole)
    order = (LOSS, TARGETS, HEALTH, RATES, SPEED)
    found.panels = {heading: found.panels[heading] for heading in order if heading in found.panels}
    return found


def overlaid(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, list[Panel]]:
    """Return panels with one line per run: loss, learning rate, speed, and every probe that a run has.

    Runs that were measured at other steps keep their last value in between.
    """
    series: dict[str, dict[str, dict[str, dict[int, float | None]]]] = {}
    for record, name in zip(records, names, strict=True):
        for column, heading in (("loss", LOSS), ("lr", RATES), ("images_per_s", SPEED)):
            for line in record.metrics:
                place = line.get("speed", {}) if heading == SPEED else line
                if column in place:
                    _put(series, heading, column, name, line["step"], place[column])
        for line in record.probes:
            for column, value in line.items():
                if column not in ("step", "speed"):
                    _put(series, HEALTH, column, name, line["step"], value)
    return {
        heading: [_held(TITLES.get(column, column), runs) for column, runs in columns.items()]
        for heading, columns in series.items()
    }


def _put(
    series: dict[str, dict[str, dict[str, dict[int, float | None]]]],
    heading: str,
    column: str,
    run: str,
    step: int,
    value: float | None,
) -> None:
    series.setdefault(heading, {}).setdefault(column, {}).setdefault(run, {})[step] = value


def _held(title: str, runs: Mapping[str, Mapping[int, float | None]]) -> Panel:
    steps = sorted({step for known in runs.values() for step in known})
    lines: dict[str, list[float | None]] = {}
    for run, known in runs.items():
        last, end, values = None, max(known), []
        for step in steps:
            last = known.get(step, last)
            values.append(last if step <= end else None)
        lines[run] = values
    return Panel(title, steps, lines)


def _add(
    found: Curves, heading: str, name: str, steps: Sequence[int], values: Sequence[float | None], whole: int
) -> None:
    title = TITLES.get(name, name.removeprefix("health/"))
    is_noisy = heading == LOSS or name == "grad_norm"
    panel = Panel(title, steps, {title: values}, NOTES.get(name, ""), whole, is_noisy)
    found.panels.setdefault(heading, []).append(panel)


def _note_gaps(found: Curves, name: str, steps: Sequence[int], values: Sequence[float | None]) -> None:
    at = gaps(steps, values)
    if at:
        shown = ", ".join(map(str, at[:_SHOWN_GAPS])) + (", ..." if len(at) > _SHOWN_GAPS else "")
        found.missing.append(f"{name} is not a finite number at {len(at)} of {len(steps)} steps ({shown}).")


def _columns(lines: Sequence[Mapping[str, Any]], *, skip: Sequence[str]) -> dict[str, list[float | None]]:
    """Numbers by name, one per line; None where a line has none."""
    names = dict.fromkeys(name for line in lines for name in line if name not in skip)
    table = {name: [line.get(name) for line in lines] for name in names}
    return {name: [_number(v) for v in values] for name, values in table.items() if any(map(_is_number, values))}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
