# SPDX-License-Identifier: Apache-2.0
"""The sentence at the top says what the rows say together, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from rekindle.evaluation.verdict.judging import Joint, Verdict
from rekindle.report.verdicts import VerdictRow, chance_note, covered, need_note, overall_sentence


def row(
    verdict: str,
    protocol: str = "linear-seg",
    low: float = 0.01,
    high: float = 0.05,
    metric: str = "mIoU",
    data: str = "toy, val",
    comparison: str = "a",
    **more: Any,
) -> VerdictRow:
    values = {"rule": "student", "units": 52, "items": 52, "evaluation_seeds": 3, "smallest_effect": 0.012}
    values |= {"units_for_half": 203, "base": 0.4, "model": 0.43, "base_std": 0.01, "model_std": 0.02, "per_class": {}}
    found = Verdict(verdict=verdict, difference=0.03, low=low, high=high, level=0.95, **(values | more))
    return VerdictRow(protocol, metric, found, data=data, comparison=comparison)


def joint(verdict: str, low: float = -0.01, high: float = 0.07, looks: int = 2) -> Joint:
    return Joint.model_validate({"verdict": verdict, "low": low, "high": high, "level": 0.975, "looks": looks})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [row("better")],
            "The adapted model is better than its base under linear-seg (+3.0 points of mIoU; 95 %: +1.0 to +5.0).",
        ),
        (
            [row("worse", low=-0.05, high=-0.01)],
            "is worse than its base under linear-seg (+3.0 points of mIoU; 95 %: -5.0 to -1.0).",
        ),
        ([row("no difference", low=-0.01)], "No difference between the adapted model and its base could be shown"),
        (
            [row("equivalent", low=-0.01)],
            "The adapted model and its base are equivalent within the margin under linear-seg (",
        ),
        (
            [row("cannot judge")],
            "Whether the adapted model is better than its base cannot be judged under linear-seg (",
        ),
        (
            [row("better"), row("worse", "dense-retrieval", -0.02, -0.01)],
            "better under linear-seg (+3.0 points of mIoU; 95 %: +1.0 to +5.0); worse under dense-retrieval (+3.0 points of "
            "mIoU; 95 %: -2.0 to -1.0).",
        ),
        (
            [row("better", joint=joint("no difference")), row("cannot judge", "fpn")],
            "against its base: no difference under linear-seg (+3.0 points of mIoU; 95 %: -1.0 to +7.0); "
            "cannot judge under fpn (",
        ),
        (
            [row("better"), row("better", data="other, val")],
            "linear-seg on toy, val (+3.0 points of mIoU; 95 %: +1.0 to +5.0) and linear-seg on other",
        ),
        ([row("better", metric="MSE (log²)", low=0.25, high=0.5)], "(MSE (log²) +0.03; 95 %: +0.25 to +0.5)"),
    ],
)
def test_the_sentence_says_no_more_than_the_rows_together(rows: list[VerdictRow], expected: str) -> None:
    assert expected in overall_sentence(rows)


def test_many_measurements_are_counted_and_the_first_keeps_its_interval() -> None:
    rows = [row("better", "first"), *[row("no difference", str(i)) for i in range(3)], row("worse", "last")]
    sentence = overall_sentence(rows)
    assert "of 5 measurements: better in 1, worse in 1, no difference in 3" in sentence
    assert "first: +3.0 points of mIoU; 95 %: +1.0 to +5.0." in sentence


def test_what_the_number_of_looks_does_to_the_words_is_said() -> None:
    assert chance_note([row("better")]) == ""
    assert chance_note([row("better"), row("different"), row("cannot judge")]) == ""
    told = chance_note([row("better", joint=joint("better", looks=4)), row("worse", joint=joint("worse", looks=4))])
    assert told.startswith("4 differences were looked at together. The words above rest on intervals that are widened")
    assert chance_note([row("better", joint=joint("better", looks=4)), row("worse")])[0] == "4"
    assert "the chance of any false word is about 5 % if nothing had changed" in told and "not widened" not in told


def test_comparisons_beside_each_other_are_each_widened_alone() -> None:
    told = chance_note([row("better", comparison=name) for name in "abcd"])
    assert told.startswith("4 comparisons stand here.") and told.endswith("Of all together, about 0.2 would have one.")


def test_files_of_before_keep_the_note_of_before() -> None:
    told = chance_note([row("better", rule="percentile")] * 10)
    assert told.startswith("10 intervals by the older rule were looked at; 0.5 of them")
    assert told.endswith("They are not widened for their number.")


def test_what_could_not_be_seen_stands_under_the_sentence() -> None:
    unseen = "ffects below 1.2 points cannot be seen reliably with 52 images; about 200 would show 0.6."
    assert need_note([row("better")]) == ""
    assert need_note([row("no difference")]) == f"E{unseen}"
    assert need_note([row("better"), row("no difference", "fpn")]) == f"fpn: e{unseen}"
    assert need_note([row("cannot judge", items=12, units=12)]) == "12 images; a verdict needs 30 (or 8 groups)."
    assert need_note([row("no difference", rule="percentile", smallest_effect=None)]) == ""


def test_what_is_covered_is_said_once_or_by_protocol() -> None:
    assert covered([row("better"), row("better", "fpn")]) == [row("better").covers]
    told = covered([row("better"), row("better", "fpn", training_seeds=3), row("worse", "knn")])
    assert told == [
        f"linear-seg, knn: {row('better').covers}",
        "fpn: The interval covers the choice of 52 images, 3 evaluation seeds and 3 trainings.",
    ]


def test_a_row_as_plain_values_has_the_verdict_and_where_it_is_from() -> None:
    found = row("better").to_dict()
    assert (found["verdict"], found["difference"], found["items"], found["seeds"]) == ("better", 0.03, 52, 3)
    assert (found["protocol"], found["name"], found["data"]) == ("linear-seg", "adapted", "toy, val")
