# SPDX-License-Identifier: Apache-2.0
"""Run records: where it ran, what set its options, what it skipped, what it said."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rekindle.core.files import printable
from rekindle.data.decoding import RULES
from rekindle.data.images import ImageSource
from rekindle.data.options import DataOptions
from rekindle.engine.run_folder import RunFolder
from rekindle.engine.session import session_record
from rekindle.engine.watcher import LOGGER, StepReport, Watcher
from rekindle.pretraining.options import Resolved


def record_start(folder: RunFolder, resolved: Resolved, device: torch.device) -> None:
    """Write what set each option (of the first start), and add where this start runs."""
    if not folder.sources.exists():
        told = {"sources": resolved.sources, "reasons": resolved.reasons}
        folder.write_text(folder.sources, json.dumps(told, indent=1) + "\n")
    with folder.sessions.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(session_record(device) | {"decoding": RULES}) + "\n")


def record_skipped_images(
    folder: RunFolder, images: ImageSource, skipped: frozenset[int], options: DataOptions, watcher: Watcher
) -> None:
    """Add to the list of images that could not be read: a line each, its name, a tab, and why."""
    before = folder.skipped.read_text(encoding="utf-8").splitlines() if folder.skipped.exists() else []
    lines = dict(line.split("\t", 1) for line in before)
    for index in skipped:
        name = printable(images.name(index))
        if name not in lines:
            lines[name] = printable(images.why_unreadable(index, options))
    if lines:
        folder.write_text(folder.skipped, "".join(f"{name}\t{reason}\n" for name, reason in sorted(lines.items())))
        watcher.message(
            f"{len(lines)} of {len(images)} images could not be read and were skipped; see {folder.skipped}"
        )


class _Tee:
    """Passes messages on, and keeps them in the run's log."""

    def __init__(self, watcher: Watcher, handler: logging.Handler) -> None:
        self._watcher, self._handler = watcher, handler

    def message(self, text: str) -> None:
        self._handler.emit(logging.makeLogRecord({"msg": text, "levelname": "INFO", "name": LOGGER.name}))
        self._watcher.message(text)

    def step(self, report: StepReport) -> None:
        self._watcher.step(report)

    def close(self) -> None:
        self._watcher.close()


@contextmanager
def logged(folder: RunFolder, watcher: Watcher) -> Iterator[Watcher]:
    """Have every message, and what ends the run, in the run's log as well."""
    handler = logging.FileHandler(folder.log, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    tee = _Tee(watcher, handler)
    handler.emit(logging.makeLogRecord({"msg": f"command: {shlex.join(sys.argv)}", "name": LOGGER.name}))
    try:
        yield tee
    except Exception as error:
        handler.emit(logging.makeLogRecord({"msg": f"failed: {error}", "name": LOGGER.name}))
        raise
    finally:
        handler.close()
