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
from rekindle.evaluation.verdict.neighbours import neighbours
from rekindle.evaluation.verdict.proposals import from_names
from rekindle.measuring.measurement import LabelledData


def notes_on_groups(
    data: LabelledData, models: Sequence[str], sides: Mapping[str, Sequence[Sequence[Outcome]]]
) -> list[str]:
    """Say which groups were let through that both splits have, and where groups are evident and none were asked for.

    Evident by names, once for all protocols that measure the same images; or, of the model of each protocol where most, by
    neighbours that are alike in what they add to the difference.

    Args:
        data: what was measured.
        models: names, the base first.
        sides: by protocol: of each model the outcome of each seed.

    """
    by_name: dict[str, str] = {}  # note -> protocols
    alike = []
    for protocol, (base, *others) in sides.items():
        grouping, items = data.grouping(protocol), base[0].items
        if grouping is not None:
            if grouping.shared:
                alike.append(
                    f"{protocol}: {len(grouping.shared)} of the groups have images among what was learnt from "
                    "(--allow-shared-groups), so its numbers flatter"
                )
            continue
        if import_named(PROTOCOLS, "protocol", protocol).UNGROUPED:
            continue
        classes = _classes(data, protocol, items)
        proposals = from_names(items, classes)
        if proposals:
            best = proposals[0]
            note = (
                f"the images seem to belong together by {best.origin} ({best.told}); if they do, intervals of single images "
                f"are too narrow: --group-by {shlex.quote(best.rule)}"
            )
            by_name[note] = f"{by_name[note]}, {protocol}" if note in by_name else protocol
        first = np.stack([outcome.rows for outcome in base])
        found = [
            (name, neighbours([first], [np.stack([o.rows for o in side])], base[0].score, items, classes))
            for name, side in zip(models[1:], others, strict=True)
        ]
        seen = [(name, own) for name, own in found if own is not None and own.are_alike]
        if seen:
            name, most = max(seen, key=lambda entry: entry[1].widening)
            alike.append(f"{protocol}, {name}: {most.told}")
    return [f"{protocols}: {note}" for note, protocols in by_name.items()] + alike


def _classes(data: LabelledData, protocol: str, items: Sequence[str]) -> list[str]:
    """The class of each item where images have one."""
    test = data.test(protocol)
    if not isinstance(test, ClassFolder):
        return []
    of = dict(zip(test.items, test.labels.tolist(), strict=True))
    return [test.names[of[item]] for item in items]
