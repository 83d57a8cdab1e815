# SPDX-License-Identifier: Apache-2.0
"""What `rekindle check` proposes for `--group-by`: from names, times and near-copies of the images that it has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.data.doctor import Diagnosis
from rekindle.evaluation.scores.result import write_csv
from rekindle.evaluation.verdict.groups import read_rule
from rekindle.evaluation.verdict.proposals import (
    Proposal,
    are_evident,
    as_proposal,
    film_piece,
    from_names,
    from_times,
    is_finer,
    near_copies,
    rank,
    time_in,
)

MOST_COMPARED = 20_000
"""Images up to which each is held against every other one for near-copies."""
TABLE = "groups.csv"


@dataclass(frozen=True)
class Checked:
    """Images that were read.

    Attributes:
        name: of the source.
        split: of labelled data; empty for images without labels.
        items: names of the images, as results have them.
        paths: the same images as the diagnosis names them.
        classes: of the images, where each has one.
        diagnosis: what was found.

    """

    name: str
    split: str
    items: Sequence[str]
    paths: Sequence[str]
    classes: Sequence[str]
    diagnosis: Diagnosis


def proposed_groups(sources: Sequence[Checked], out: Path | None) -> list[dict[str, Any]]:
    """Say which images of each source seem to belong together, the rule to take first; nothing where they look independent.

    Groups by times and near-copies have no rule but a table: with `out` it is written there (`groups.csv`).

    Returns: for each proposal `source`, `from`, `group_by` (None where no table was written), `told`, `groups`, the sizes
        `smallest`, `median`, `largest`, and `shared`, how many of its groups other splits have as well.
    """
    by_time, by_likeness = _series(sources), _copies(sources)
    columns = {name: found for name, found in (("series", by_time), ("copies", by_likeness)) if found is not None}
    rules: dict[str, str | None] = dict.fromkeys(columns)
    if out is not None and columns:
        write_csv(out / TABLE, ["split", "item", *columns], _lines(sources, columns))
        rules = {name: f"{out / TABLE}:{name}" for name in columns}
    found = []
    for source in sources:
        proposals = from_names(source.items, source.classes)
        piece = film_piece(*_seen(source))
        if piece and not any(p.origin == "frames" for p in proposals):
            rule = f"every:{piece}"
            proposals = sorted(
                [*proposals, as_proposal(rule, "likeness", read_rule(rule).groups(source.items, ""))], key=rank
            )
        own = [_told(source, p, p.rule, _shared(source, sources, p.rule)) for p in proposals]
        for name, groups in columns.items():
            of_items = {item: groups[source.name, item] for item in source.items}
            proposal = as_proposal(f"{TABLE}:{name}", "times" if name == "series" else "near-copies", of_items)
            is_known = name == "copies" and (piece or any(_lies_in(of_items, p, source.items) for p in proposals))
            if 1 < len(proposal.sizes) < len(source.items) and not is_known:
                others = {groups[s.name, item] for s in sources if s is not source for item in s.items}
                own.append(_told(source, proposal, rules[name], len({*of_items.values()} & others)))
        found += own
    return found


def _series(sources: Sequence[Checked]) -> dict[tuple[str, str], str] | None:
    """Return the series of each image by the times of all sources: from files, or else from names."""
    places, times = [], []
    for source in sources:
        for item, path in zip(source.items, source.paths, strict=True):
            places.append((source.name, item))
            times.append(source.diagnosis.times.get(path, time_in(item)))
    series = from_times(times)
    if series is None:
        return None
    begins: dict[int, float] = {}
    for number, time in zip(series, times, strict=True):
        assert time is not None
        begins[number] = min(time, begins.get(number, time))
    names = {n: datetime.fromtimestamp(begin, UTC).strftime("%Y-%m-%d %H:%M:%S") for n, begin in begins.items()}
    return {place: names[number] for place, number in zip(places, series, strict=True)}


def _copies(sources: Sequence[Checked]) -> dict[tuple[str, str], str] | None:
    """Return the set of near-copies of each image over all sources, by the name of its first; an image alone is its own."""
    places, bits = [], []
    named: dict[tuple[str, str], str] = {}
    for source in sources:
        for item, path in zip(source.items, source.paths, strict=True):
            named[source.name, item] = f"{source.split}: {item}" if source.split else item
            if path in source.diagnosis.likeness:
                places.append((source.name, item))
                bits.append(source.diagnosis.likeness[path])
    if not 1 < len(bits) <= MOST_COMPARED:
        return None
    sets = near_copies(np.stack(bits))
    if not are_evident(sets):
        return None
    return named | {place: named[places[first]] for place, first in zip(places, sets, strict=True)}


def _seen(source: Checked) -> tuple[Any, list[str]]:
    """Return likeness and names of the images that show something."""
    known = source.diagnosis.likeness
    seen = [(known[path], item) for item, path in zip(source.items, source.paths, strict=True) if path in known]
    return np.stack([bits for bits, _ in seen]) if seen else np.zeros((0, 1), np.bool_), [item for _, item in seen]


def _lines(sources: Sequence[Checked], columns: Mapping[str, Mapping[tuple[str, str], str]]) -> list[list[str]]:
    return [
        [source.split, item, *(groups[source.name, item] for groups in columns.values())]
        for source in sources
        for item in source.items
    ]


def _lies_in(groups: Mapping[str, str], proposal: Proposal, items: Sequence[str]) -> bool:
    """Whether every group lies inside one of a rule's."""
    rule = read_rule(proposal.rule).groups(items, "")
    return is_finer([groups[item] for item in items], [rule[item] for item in items])


def _shared(source: Checked, sources: Sequence[Checked], rule: str) -> int:
    """Count the groups that other sources have as well."""
    read = read_rule(rule)
    if not read.spans_splits:
        return 0
    others = {group for s in sources if s is not source for group in read.groups(s.items, s.split).values()}
    return len({*read.groups(source.items, source.split).values()} & others)


def _told(source: Checked, proposal: Proposal, rule: str | None, shared: int) -> dict[str, Any]:
    sizes = proposal.sizes
    return {
        "source": source.name,
        "from": proposal.origin,
        "group_by": rule,
        "told": proposal.told,
        "groups": len(sizes),
        "smallest": sizes[-1],
        "median": sorted(sizes)[len(sizes) // 2],
        "largest": sizes[0],
        "shared": shared,
    }
