# SPDX-License-Identifier: Apache-2.0
"""Run folder on disk, read without trusting it: whatever is missing or broken is noted, and the rest is used."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rekindle.core.errors import RequestError
from rekindle.core.option_trees import leaves
from rekindle.engine.metrics_log import read_log
from rekindle.engine.run_folder import RunFolder
from rekindle.pretraining.options import PretrainOptions, Resolved, read_run_file, resolve

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (.*)$")
_WARNING = re.compile(r"^(warning|failed)\b")


@dataclass
class RunRecord:
    """One run.

    Attributes:
        folder: of the run.
        options: as it was resolved; None if the file cannot be read any more.
        settings: dotted name -> value.
        sources, reasons: dotted name -> what set it, and why; empty where that was not recorded.
        sessions: one per start of the run: command, versions, device.
        description: model.json; None if the run has not finished.
        metrics, probes: lines of the logs.
        log: messages of run.log.
        seconds_by_log: from the first to the last line of run.log, per start.
        skipped: images that could not be read.
        missing: what is not there, and why.

    """

    folder: RunFolder
    options: PretrainOptions | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    description: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    seconds_by_log: float | None = None
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the page calls the run."""
        return self.folder.path.resolve().name

    @property
    def steps_done(self) -> int:
        """The last step that the log holds."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def warnings(self) -> list[str]:
        """What the run warned of, and why it failed."""
        return [line for line in self.log if _WARNING.match(line)]

    @property
    def commands(self) -> list[str]:
        """The command of each start."""
        told = [str(session["command"]) for session in self.sessions if "command" in session]
        return told or [line.removeprefix("command: ") for line in self.log if line.startswith("command: ")]


def read_record(path: str | Path) -> RunRecord:
    """Read a run. Raises RequestError if the folder holds none."""
    folder = RunFolder(path)
    if not folder.path.is_dir():
        raise RequestError(f"{path}: there is no such folder; give the folder of a run (--out of `rekindle pretrain`)")
    if not folder.holds_run:
        raise RequestError(
            f"{path} holds no config.yaml, so it is not the folder of a run; give --out of `rekindle pretrain`"
        )
    record = RunRecord(folder)
    _read_options(record)
    record.description = _json(record, folder.description)
    if record.description is None:
        record.missing.append(
            "The run has not finished: there is no model yet, so nothing could be compared or drawn with it. "
            "Continue it with --resume, then make the report again."
        )
    told = _json(record, folder.sources) or {}
    record.sources, record.reasons = told.get("sources", {}), told.get("reasons", {})
    record.sessions = _lines(folder.sessions)
    _read_logs(record)
    if folder.skipped.is_file():
        lines = folder.skipped.read_text(encoding="utf-8", errors="replace").splitlines()
        record.skipped = [line.replace("\t", ": ") for line in lines]  # name, and why it could not be read
    return record


def _read_options(record: RunRecord) -> None:
    try:
        tree = read_run_file(record.folder.config)
        resolved: Resolved = resolve(tree, {}, file_name=str(record.folder.config))
    except RequestError as error:
        record.missing.append(f"The configuration cannot be read as this version's: {error}")
        return
    record.options = resolved.options
    dumped = resolved.options.model_dump(mode="json")
    for name in leaves(dumped):
        value: Any = dumped
        for part in name.split("."):
            value = value[part]
        record.settings[name] = value


def _read_logs(record: RunRecord) -> None:
    folder = record.folder
    record.metrics, broken = read_log(folder.metrics)
    if not record.metrics:
        record.missing.append("There are no curves: metrics.jsonl is missing or empty.")
    if broken:
        plural = "lines" if broken > 1 else "line"
        record.missing.append(f"Left out of metrics.jsonl: {broken} {plural} that cannot be read.")
    record.probes, _ = read_log(folder.probes)
    if not record.probes:
        record.missing.append(
            "Rank and drift were not measured while training; `--probe health` of `rekindle pretrain` does that."
        )
    if not folder.log.is_file():
        record.missing.append("run.log is missing, so warnings of the run are not known.")
        return
    stamps: list[list[datetime]] = []
    for line in folder.log.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _STAMP.match(line)
        if found is None:
            continue
        record.log.append(found[2])
        if found[2].startswith("command: ") or not stamps:
            stamps.append([])
        stamps[-1].append(datetime.fromisoformat(found[1]))
    if stamps:
        record.seconds_by_log = sum((part[-1] - part[0]).total_seconds() for part in stamps)


def _json(record: RunRecord, path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        record.missing.append(f"{path.name} cannot be read ({error}).")
        return None
    return content if isinstance(content, dict) else None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue  # a start that was cut off while it was noted
        if isinstance(content, dict):
            found.append(content)
    return found
