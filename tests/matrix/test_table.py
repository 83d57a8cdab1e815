# SPDX-License-Identifier: Apache-2.0
"""What a table says of a field: the word, what it could have seen, and whether it holds over all columns of its row."""

from __future__ import annotations

from typing import Any

import pytest

from rekindle.evaluation.verdict.judging import Joint
from rekindle.matrix.pooling import Pooled
from rekindle.matrix.table import ONE_TRAINING, Scores, StartRecord, Table, TableRow, lines, notes, to_csv

WIDE = Joint(verdict="no difference", low=-0.02, high=0.08, level=0.99, looks=2)


def pooled(**more: Any) -> Pooled:
    values: dict[str, Any] = {
        "verdict": "no difference",
        "difference": 0.005,
        "low": -0.001,
        "high": 0.011,
        "level": 0.95,
    }
    values |= {"rule": "student", "units": 52, "items": 52, "smallest_effect": 0.012, "training_seeds": 3}
    values |= {
        "mean": 0.405,
        "start_mean": 0.4,
        "by_training_seed": [0.405],
        "training_std": 0.0,
        "evaluation_std": 0.0,
    }
    return Pooled.model_validate(values | more)


def table(**fields: Pooled) -> Table:
    scores = {name: Scores(metric="mIoU", by_seed=[0.4], metrics={"mIoU": 0.4}, results=[]) for name in fields}
    row = TableRow(
        start="s", method="glare", framework="adapters", images=1.0, seeds=[0], failed={}, waiting=[], pooled=fields,
        metrics={name: {"mIoU": 0.405} for name in fields}, overall=None,
    )  # fmt: skip
    return Table(
        grid={"level": 0.95}, protocols=[*fields], columns=[], is_complete=True, is_stopped=False,
        starts=[StartRecord(name="s", model="m", model_hash="h", scores=scores)], cells=[], rows=[row], interval="Intervals.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "parts", "note"),
    [
        (
            pooled(),
            ("no difference", "sees 1.20"),
            '"sees" is the smallest effect that 80 of 100 such measurements would',
        ),
        (pooled(verdict="better", joint=WIDE), ("better", "by itself"), '"by itself": that word holds for the field'),
        (
            pooled(verdict="cannot judge", units=12, items=12),
            ("cannot judge",),
            "Cannot judge: 12 items; a verdict needs 30",
        ),
        (pooled(verdict="equivalent", margin=0.02), ("equivalent",), ""),
        (pooled(rule="percentile", smallest_effect=None), ("no difference",), ""),
        (pooled(verdict="better", training_seeds=1), ("better",), ONE_TRAINING),
    ],
)
def test_a_field_says_what_its_word_leaves_open_and_a_note_what_that_means(
    found: Pooled, parts: tuple[str, ...], note: str
) -> None:
    whole = table(fpn=found)
    assert lines(whole)[1][2] == [("40.50", "+0.50 [-0.10, +1.10]", *parts)]
    told = notes(whole)
    assert (note in told[-1] and len(told) == 2) if note else told == ["Intervals."]


def test_the_columns_of_a_row_are_the_looks_that_are_taken_together() -> None:
    told = notes(table(fpn=pooled(), knn=pooled(joint=WIDE)))
    assert told[-1].startswith(
        "2 intervals at 95% stand here, not widened for their number: if nothing had any effect, about 0.1"
    )
    assert (
        "The overall word of a row rests on intervals widened for its columns; of the 1 overall words about 0.05"
        in told[-1]
    )


def test_the_word_over_all_looks_stands_in_the_csv() -> None:
    text = to_csv(table(fpn=pooled(verdict="better", joint=WIDE), knn=pooled())).splitlines()
    names = text[0].split(",")
    assert names[-3:] == ["joint_verdict", "joint_low", "joint_high"] and "smallest_effect" in names
    assert text[3].endswith("no difference,-0.02,0.08") and text[4].endswith(",,,")
