# SPDX-License-Identifier: Apache-2.0
"""`rekindle study calibration`: how often the verdict is wrong, measured cell by cell, with its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rekindle.calibration.limits import Calibration, limits_of, together
from rekindle.calibration.options import CalibrationOptions
from rekindle.calibration.page import page
from rekindle.calibration.rules import Before, Now, Rule
from rekindle.calibration.simulate import Measured, duration, jobs
from rekindle.core.files import write_atomically
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.scores.result import write_json

Message = Callable[[str], None]
FILES = ("calibration.json", "calibration.md", "calibration.png")


def run_calibration(
    options: CalibrationOptions, *, rules: Sequence[Rule] | None = None, message: Message = lambda text: None
) -> Calibration:
    """Measure what is asked for, and return it; `write_calibration` writes it.

    Args:
        options: which cells, and how many trials.
        rules: what judges; those of before and now unless others are given. One has to be called `now`.
        message: takes a line per cell, with what is left.

    """
    judges = rules or (Before(options.resamples), Now(options.resamples))
    planned = list(jobs(options.sections, is_short=options.short))
    measured: list[Measured] = []
    began = time.monotonic()
    for number, job in enumerate(planned, start=1):
        found = job.run(options.trials_run, options.seed, judges)
        measured.append(found)
        rates = ", ".join(f"{j.rule} {j.wrong.value:.1%}" for j in found.judged)
        left = (time.monotonic() - began) / number * (len(planned) - number)
        message(f"{number}/{len(planned)} {job.section}: {job.world}, {job.label}: wrong {rates}; ETA {duration(left)}")
    if "real" in options.sections and options.real_run:
        from rekindle.calibration.real import real_cells
        from rekindle.calibration.real_rows import QUICK

        protocols = QUICK if options.short else tuple(PROTOCOLS)
        measured += real_cells(protocols, options.real_run, options.seed, judges, message)
    return Calibration(
        trials=options.trials_run,
        real=options.real_run,
        resamples=options.resamples,
        seed=options.seed,
        together=together(measured),
        measured=measured,
        limits=limits_of(measured),
    )


def write_calibration(found: Calibration, folder: Path) -> None:
    """Write calibration.json, calibration.md and calibration.png; none of them names a place on this machine."""
    from rekindle.calibration.picture import write_picture

    folder.mkdir(parents=True, exist_ok=True)
    data, text, picture = (folder / name for name in FILES)
    write_json(data, found.model_dump(mode="json"))
    write_atomically(text, lambda stream: stream.write(page(found).encode()))
    write_picture(picture, found)
