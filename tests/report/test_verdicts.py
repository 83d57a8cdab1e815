# SPDX-License-Identifier: Apache-2.0
"""The sentence at the top says what the rows say, and no more."""

from __future__ import annotations

import pytest

from rekindle.report.verdicts import VerdictRow, chance_note, overall_sentence, plain, points, signed


def row(
    verdict: str,
    protocol: str = "linear-seg",
    low: float = 0.01,
    high: float = 0.05,
    metric: str = "mIoU",
    data: str = "toy, val",
) -> VerdictRow:
    return VerdictRow(protocol, metric, verdict, 0.4, 0.43, 0.01, 0.02, 0.03, low, high, 0.95, data=data)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("better")], "The adapted model is better than its base under linear-seg (+1.0 to +5.0 points)."),
        ([row("worse", low=-0.05, high=-0.01)], "is worse than its base under linear-seg (-5.0 to -1.0 points)."),
        ([row("no difference", low=-0.01)], "No difference between the adapted model and its base could be shown"),
        (
            [row("better"), row("worse", "dense-retrieval", -0.02, -0.01)],
            "better under linear-seg (+1.0 to +5.0 points); worse under dense-retrieval (-2.0 to -1.0 points).",
        ),
        (
            [row("better"), row("better", data="other, val")],
            "linear-seg on toy, val (+1.0 to +5.0 points) and linear-seg on other",
        ),
        ([row("better", metric="MSE (log²)", low=0.25, high=0.5)], "(+0.25 to +0.5)"),
    ],
)
def test_the_sentence_says_no_more_than_the_rows(rows: list[VerdictRow], expected: str) -> None:
    assert expected in overall_sentence(rows)


def test_many_measurements_are_counted_and_the_first_keeps_its_interval() -> None:
    rows = [row("better", "first"), *[row("no difference", str(i)) for i in range(3)], row("worse", "last")]
    sentence = overall_sentence(rows)
    assert "of 5 measurements: better in 1, no difference in 3, worse in 1" in sentence
    assert "first: mIoU +3.0 points (+1.0 to +5.0 points)" in sentence


def test_what_chance_alone_would_do_is_said_of_several_intervals() -> None:
    assert chance_note([row("better")]) == ""
    assert chance_note([row("better"), row("different")]) == ""
    assert chance_note([row("better")] * 10).startswith("10 intervals were looked at; 0.5 of them")


def test_numbers_that_are_no_fractions_are_not_shown_as_percent() -> None:
    assert (plain("mIoU", 0.123), plain("MSE (log²)", 0.123)) == ("12.3", "0.123")
    assert (signed("mIoU", -0.02, unit=True), signed("MSE (log²)", -0.02, unit=True)) == ("-2.0 points", "-0.02")
    assert points(-0.00004) == "0.0" or points(-0.00004) == "-0.00"
