# SPDX-License-Identifier: Apache-2.0
"""What a comparison says of images that seem to belong together, beside its verdicts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from rekindle.core.tables import import_named
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation import PROTOCOLS
from rekindle.evaluation.protocol import Outcome
from rekindle.evaluation.scores.score import Rows, Score
from rekindle.evaluation.verdict.neighbours import Neighbours, neighbours
from rekindle.evaluation.verdict.proposals import from_names
from rekindle.measuring.measurement import LabelledData


class EvidentGroups:
    """Notes on groups that both splits have, and on groups that are evident where none were asked for.

    Evident by names, once for all columns that measure the same images; or by neighbours that are alike in what they add to a
    difference, of each column where most.
    """

    def __init__(self) -> None:
        self._by_names: dict[str, dict[str, None]] = {}  # note -> columns
        self._shared: dict[str, str] = {}  # by column
        self._alike: dict[str, dict[str, Neighbours]] = {}  # by column and model

    def look(
        self,
        column: str,
        data: LabelledData,
        protocol: str,
        items: Sequence[str],
        score: Score,
        base: Sequence[Rows],
        models: Mapping[str, Sequence[Rows]],
    ) -> None:
        """Take in one column.

        Args:
            column: what it is called.
            data: what was measured.
            protocol: its name.
            items: in the order of the rows.
            score: what rows come to.
            base: one [S, n, F] per training.
            models: the same by name.

        """
        grouping = data.grouping(protocol)
        if grouping is not None and grouping.shared:
            self._shared[column] = (
                f"{len(grouping.shared)} of the groups have images among what was learnt from (--allow-shared-groups), so its "
                "numbers flatter"
            )
        if grouping is not None or import_named(PROTOCOLS, "protocol", protocol).UNGROUPED:
            return
        classes = _classes(data, protocol, items)
        for best in from_names(items, classes)[:1]:
            note = (
                f"the images seem to belong together by {best.origin} ({best.told}); if they do, intervals of single images "
                f"are too narrow: --group-by {shlex.quote(best.rule)}"
            )
            self._by_names.setdefault(note, {})[column] = None
        for name, model in models.items():
            found = neighbours(base, model, score, items, classes)
            own = self._alike.setdefault(column, {})
            own.pop(name, None)  # looked at before, with fewer trainings
            if found is not None and found.are_alike:
                own[name] = found

    @property
    def notes(self) -> list[str]:
        """One sentence each, the columns first that it is of."""
        return [
            *(f"{', '.join(columns)}: {note}" for note, columns in self._by_names.items()),
            *(f"{column}: {note}" for column, note in self._shared.items()),
            *(f"{column}, {_most(own)}: {own[_most(own)].told}" for column, own in self._alike.items() if own),
        ]


def _most(alike: Mapping[str, Neighbours]) -> str:
    """The model of which the interval is too narrow by most."""
    return max(alike, key=lambda name: alike[name].widening)


def notes_on_groups(
    data: LabelledData, models: Sequence[str], sides: Mapping[str, Sequence[Sequence[Outcome]]]
) -> list[str]:
    """Return the notes on a comparison.

    Args:
        data: what was measured.
        models: names, the base first.
        sides: by protocol: of each model the outcome of each seed.

    """
    evident = EvidentGroups()
    for protocol, (base, *others) in sides.items():
        of_base, *of_others = ([np.stack([outcome.rows for outcome in side])] for side in (base, *others))
        named = dict(zip(models[1:], of_others, strict=True))
        evident.look(protocol, data, protocol, base[0].items, base[0].score, of_base, named)
    return evident.notes


def _classes(data: LabelledData, protocol: str, items: Sequence[str]) -> list[str]:
    """The class of each item where images have one."""
    test = data.test(protocol)
    if not isinstance(test, ClassFolder):
        return []
    of = dict(zip(test.items, test.labels.tolist(), strict=True))
    return [test.names[of[item]] for item in items]
