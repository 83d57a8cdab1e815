# SPDX-License-Identifier: Apache-2.0
"""Relative improvement over a baseline, averaged over the data sets (LOCA, table 4).

For every data set: 100 * (value - baseline) / baseline, each value a mean over the seeds; then the arithmetic mean. Where a
lower number is better the sign is turned. Only result files are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rekindle.core.errors import RequestError
from rekindle.core.options import Options
from rekindle.evaluation.scores.result import EvalResult, read_result

Place = tuple[str, str, str]
"""Data, split, protocol."""


class RelativeColumn(Options):
    """One data set under one protocol."""

    data: str
    """The data set's folder."""
    split: str
    """The split."""
    protocol: str
    """Name of the protocol."""
    metric: str
    """The headline."""
    baseline: float
    """Its value for the baseline, mean over the seeds."""
    values: dict[str, float]
    """Model -> value, mean over the seeds."""
    gains: dict[str, float]
    """Model -> relative improvement in percent."""


class RelativeTable(Options):
    """Models against a baseline over data sets."""

    baseline: str
    """Its name."""
    columns: list[RelativeColumn]
    """In the order of the files."""
    delta: dict[str, float | None]
    """Model -> mean of the gains over all columns, in percent; None where a column is missing."""


def relative_table(paths: Sequence[str | Path], baseline: str) -> RelativeTable:
    """Read result files and compare their models with one of them.

    Raises: RequestError if files cannot be read or compared, or the baseline is not measured somewhere.
    """
    if not paths:
        raise RequestError("name at least one result file, such as results/*.json")
    found: dict[Place, dict[str, list[EvalResult]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        result = read_result(path)
        found[result.data, result.split, result.protocol][result.model].append(result)
    models = list(dict.fromkeys(model for column in found.values() for model in column))
    if baseline not in models:
        raise RequestError(f"the baseline {baseline} is in none of the files; they are of {', '.join(models)}")
    columns = [_column(place, column, baseline) for place, column in found.items()]
    others = [model for model in models if model != baseline]
    complete = {m: all(m in column.gains for column in columns) for m in others}
    delta = {m: sum(c.gains[m] for c in columns) / len(columns) if complete[m] else None for m in others}
    return RelativeTable(baseline=baseline, columns=columns, delta=delta)


def _column(place: Place, results: dict[str, list[EvalResult]], baseline: str) -> RelativeColumn:
    data, split, protocol = place
    every = [result for own in results.values() for result in own]
    where = f"{protocol} on {data} ({split})"
    if len({result.fingerprint for result in every}) > 1:
        raise RequestError(
            f"{where}: the files differ in options or items (their fingerprints), so their numbers cannot be compared; "
            "evaluate again with the same options"
        )
    if baseline not in results:
        raise RequestError(
            f"{where}: there is no result of the baseline {baseline}; evaluate it, or leave the data set out"
        )
    for model, own in results.items():
        seeds = [result.seed for result in own]
        if len(set(seeds)) < len(seeds):
            raise RequestError(f"{where}: two files of {model} have the same seed; name one of them")
    metric = every[0].score.name
    values = {model: sum(r.metrics[metric] for r in own) / len(own) for model, own in results.items()}
    base = values[baseline]
    if base == 0:
        raise RequestError(f"{where}: the baseline's {metric} is 0, so nothing can be said relative to it")
    sign = 100.0 if every[0].score.higher_is_better else -100.0
    gains = {model: sign * (value - base) / base for model, value in values.items() if model != baseline}
    return RelativeColumn(
        data=data, split=split, protocol=protocol, metric=metric, baseline=base, values=values, gains=gains
    )
