# SPDX-License-Identifier: Apache-2.0
"""Cost of a run, as far as it was recorded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rekindle.report.record import RunRecord


def cost_numbers(record: RunRecord) -> dict[str, str | float | None]:
    """Return steps, images, time, speed, memory and final loss for the table of several runs."""
    memory = _all(record, "memory_bytes")
    speed = _all(record, "images_per_s")
    seconds = training_seconds(record)
    loss = record.metrics[-1].get("loss") if record.metrics else None
    return {
        "steps": record.steps_done,
        "images": None if record.options is None else record.steps_done * record.options.batch_size,
        "time": None if seconds is None else seconds,
        "images/s": statistics.median(speed) if speed else None,
        "memory": max(memory) / 2**30 if memory else None,
        "final loss": loss if isinstance(loss, float) else None,
    }


def cost_facts(record: RunRecord) -> dict[str, str]:
    """Return the costs of a run in words; what was not measured says so."""
    facts = {}
    seconds, logged = training_seconds(record), record.seconds_by_log
    if seconds is not None:
        facts["time"] = f"{told_time(seconds)} of training" + (
            f", {told_time(logged)} by the log with loading and pictures" if logged and logged > seconds else ""
        )
    elif logged is not None:
        facts["time"] = f"{told_time(logged)} (by the times in the log)"
    else:
        facts["time"] = "not recorded"
    if record.options is not None:
        seen = record.steps_done * record.options.batch_size
        facts["work"] = f"{record.steps_done} steps of {record.options.batch_size} images: {seen:,} images seen"
    speed, waits, memory = (_all(record, name) for name in ("images_per_s", "data_wait", "memory_bytes"))
    facts["speed"] = f"{statistics.median(speed):.1f} images/s (median)" if speed else "not recorded"
    if waits:
        facts["waiting for images"] = f"{statistics.mean(waits):.0%} of the time"
    facts["memory"] = (
        f"{max(memory) / 2**30:.2f} GiB at most (resident on a CPU, allocated on a GPU)" if memory else "not recorded"
    )
    joules = _per_start(record, "energy_joules")
    facts["energy"] = (
        f"{joules / 3600:.1f} Wh ({joules:.0f} J), as the device tells: all of it, whatever else ran there"
        if joules is not None
        else "not recorded"
        if seconds is None
        else "not measured: the device does not tell"
    )
    probes = [line.get("speed", {}).get("seconds") for line in record.probes]
    known = [float(value) for value in probes if isinstance(value, int | float)]
    if known:
        facts["probes"] = f"{sum(known):.1f} s for {len(known)} measurements while training"
    if len(record.sessions) > 1:
        facts["starts"] = str(len(record.sessions))
    return facts


def training_seconds(record: RunRecord) -> float | None:
    """Return the seconds of training over all starts; None where they were not recorded."""
    return _per_start(record, "seconds")


def told_time(seconds: float) -> str:
    """Write a time as people read it.

    Example:
        >>> told_time(75.0), told_time(3725.0), told_time(12.34)
        ('1 min 15 s', '1 h 2 min', '12.3 s')

    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _per_start(record: RunRecord, name: str) -> float | None:
    """The sum over the starts of a number that each start counts from 0: a fall is a new start."""
    values = _all(record, name)
    if not values:
        return None
    return sum(a for a, b in zip(values, [*values[1:], -1.0], strict=True) if b < a)


def _all(record: RunRecord, name: str) -> Sequence[float]:
    found = [line.get("speed", {}).get(name) for line in record.metrics]
    return [float(value) for value in found if isinstance(value, int | float) and value == value]
