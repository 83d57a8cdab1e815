# SPDX-License-Identifier: Apache-2.0
"""Every word is told with its size, its interval, and what it leaves open."""

from __future__ import annotations

from typing import Any

import pytest

from rekindle.evaluation.verdict.judging import Joint, Judged
from rekindle.evaluation.verdict.telling import (
    counted_words,
    covers,
    items_of,
    plain,
    points,
    signed,
    size,
    told,
    word_of_all,
)


def judged(verdict: str, difference: float, low: float, high: float, **more: Any) -> Judged:
    values = {"rule": "student", "units": 52, "items": 52, "evaluation_seeds": 3, "smallest_effect": 0.012}
    values |= {"units_for_half": 203, "standard_error": 0.004, "components": {"items": 1.6e-5}, "level": 0.95}
    numbers = {"verdict": verdict, "difference": difference, "low": low, "high": high}
    return Judged.model_validate(values | numbers | more)


BETTER = judged("better", 0.021, 0.008, 0.034)
OPEN = judged("no difference", 0.005, -0.001, 0.011)
EIGHT = {"unit": "groups", "units": 8, "items": 171}


@pytest.mark.parametrize(
    ("found", "metric", "sentence"),
    [
        (BETTER, "mIoU", "better: +2.1 points (95 %: +0.8 to +3.4)"),
        (judged("worse", -0.021, -0.034, -0.008), "mIoU", "worse: -2.1 points (95 %: -3.4 to -0.8)"),
        (
            judged("better", -0.21, -0.34, -0.08),
            "overlap O",
            "better: -21.0 points (95 %: -34.0 to -8.0; lower is better)",
        ),
        (judged("worse", 0.21, 0.08, 0.34), "MSE (log²)", "worse: +0.21 (95 %: +0.08 to +0.34; lower is better)"),
        (judged("better", 0.21, 0.08, 0.34, level=0.9), "rank (dimensions)", "better: +0.21 (90 %: +0.08 to +0.34)"),
        (
            OPEN,
            "mIoU",
            "no difference could be shown: +0.5 points (95 %: -0.1 to +1.1); effects below 1.2 points cannot be seen reliably "
            "with 52 images; about 200 would show 0.6",
        ),
        (
            judged("no difference", 0.005, -0.001, 0.011, margin=0.01),
            "mIoU",
            "no difference could be shown: +0.5 points (95 %: -0.1 to +1.1); not within the margin of 1.0 points; effects below "
            "1.2 points cannot be seen reliably with 52 images; about 200 would show 0.6",
        ),
        (
            judged("no difference", 0.005, -0.001, 0.011, **EIGHT, units_for_half=31),
            "mIoU",
            "no difference could be shown: +0.5 points (95 %: -0.1 to +1.1); effects below 1.2 points cannot be seen reliably "
            "with 8 groups of 171 images; about 31 groups would show 0.6",
        ),
        (
            judged("no difference", 0.005, -0.001, 0.011, units_for_half=None, components={"evaluation seeds": 1e-5}),
            "mIoU",
            "no difference could be shown: +0.5 points (95 %: -0.1 to +1.1); effects below 1.2 points cannot be seen reliably "
            "with 52 images; more images would not show half of it, for the seeds differ: measure with more evaluation seeds",
        ),
        (
            judged(
                "no difference", 0.005, -0.001, 0.011, units_for_half=None, components={"training seeds": 1e-5}, **EIGHT
            ),
            "mIoU",
            "no difference could be shown: +0.5 points (95 %: -0.1 to +1.1); effects below 1.2 points cannot be seen reliably "
            "with 8 groups of 171 images; more groups would not show half of it, for the seeds differ: train with more seeds",
        ),
        (
            judged("no difference", 0.0, 0.0, 0.0, smallest_effect=0.0, units_for_half=None),
            "mIoU",
            "no difference could be shown: 0.0 points (95 %: 0.0 to 0.0)",
        ),
        (
            judged("equivalent", 0.001, -0.002, 0.004, margin=0.005),
            "mIoU",
            "equivalent: +0.1 points (95 %: -0.2 to +0.4); within the margin of 0.5 points",
        ),
        (
            judged("cannot judge", 0.021, 0.008, 0.034, units=12, items=12),
            "mIoU",
            "cannot judge: +2.1 points (95 %: +0.8 to +3.4); 12 images; a verdict needs 30 (or 8 groups)",
        ),
        (
            judged("cannot judge", 0.021, 0.008, 0.034, unit="groups", units=5, items=171),
            "mIoU",
            "cannot judge: +2.1 points (95 %: +0.8 to +3.4); 5 groups of 171 images; a verdict needs 8 groups",
        ),
        (
            judged("cannot judge", 0.021, 0.008, 0.034, undefined=0.123),
            "mIoU",
            "cannot judge: +2.1 points (95 %: +0.8 to +3.4); 12.3 % of the resamples define no value (at most 5 % may), so the "
            "interval is of a selection; label more, or measure what is labelled everywhere",
        ),
        (
            judged("different", 0.021, 0.008, 0.034),
            "CKA",
            "different: +2.1 points (95 %: +0.8 to +3.4); a description: neither direction is better",
        ),
        (
            judged(
                "better",
                0.021,
                0.008,
                0.034,
                joint=Joint(verdict="no difference", low=-0.002, high=0.044, level=0.99, looks=4),
            ),
            "mIoU",
            "better: +2.1 points (95 %: +0.8 to +3.4); that is on its own; over all 4 looks together "
            "no difference (-0.2 to +4.4)",
        ),
        (
            judged(
                "better", 0.021, 0.008, 0.034, joint=Joint(verdict="better", low=0.001, high=0.041, level=0.99, looks=4)
            ),
            "mIoU",
            "better: +2.1 points (95 %: +0.8 to +3.4)",
        ),
        (
            Judged(verdict="no difference", difference=0.005, low=-0.001, high=0.011, level=0.95),
            "mIoU",
            "no difference could be shown: +0.5 points (95 %: -0.1 to +1.1; older rule)",
        ),
    ],
)
def test_a_verdict_in_words(found: Judged, metric: str, sentence: str) -> None:
    assert told(found, metric) == sentence


def test_items_have_the_name_that_people_give_them() -> None:
    one = judged("cannot judge", 0.0, -0.1, 0.1, units=1, items=1)
    assert "; 1 query; a verdict needs 30" in told(one, "mAP", items_of("image-retrieval on roxford"))
    assert "; 1 image; " in told(one, "mIoU", items_of("linear-seg"))
    assert items_of("one-shot, 50 % of the labels") == "episodes"


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            BETTER,
            "The interval covers the choice of 52 images and 3 evaluation seeds, and no other training: the word is about this "
            "run.",
        ),
        (
            judged("better", 0.021, 0.008, 0.034, evaluation_seeds=1, **EIGHT),
            "The interval covers the choice of 8 groups of 171 images alone, no other evaluation seed and no other training: the "
            "word is about this run.",
        ),
        (
            judged("better", 0.021, 0.008, 0.034, training_seeds=3),
            "The interval covers the choice of 52 images, 3 evaluation seeds and 3 trainings.",
        ),
        (
            Judged(verdict="better", difference=0.005, low=0.001, high=0.011, level=0.95),
            "The interval was made by the older rule (percentiles), too short for few images, seeds or trainings; compare again "
            "for the present one.",
        ),
    ],
)
def test_what_an_interval_covers_is_said(found: Judged, sentence: str) -> None:
    assert covers(found) == sentence


def test_what_was_measured_is_what_the_word_is_about() -> None:
    assert covers(BETTER, subject="model").endswith("and no other training: the word is about this model as it is.")
    assert covers(BETTER, subject="recipe").endswith("the word is about one training of this recipe.")


def test_a_step_that_was_chosen_on_these_images_is_said() -> None:
    found = judged("better", 0.021, 0.002, 0.034, flattered=(0.006, 0.0))
    assert told(found, "mIoU").endswith(
        "; a step was chosen on images that judge here: the interval reaches 0.6 points further for it"
    )


def test_the_word_over_all_looks_is_the_joint_one_where_there_is_one() -> None:
    joint = Joint(verdict="no difference", low=-0.002, high=0.044, level=0.99, looks=4)
    assert word_of_all(BETTER) == "better"
    assert word_of_all(BETTER.model_copy(update={"joint": joint})) == "no difference"
    assert counted_words(["cannot judge", "better", "equivalent", "better"]) == (
        "better in 2, equivalent in 1, cannot judge in 1"
    )


def test_numbers_that_are_no_fractions_are_not_shown_as_percent() -> None:
    assert (plain("mIoU", 0.123), plain("MSE (log²)", 0.123)) == ("12.3", "0.123")
    assert (signed("mIoU", -0.02, unit=True), signed("MSE (log²)", -0.02, unit=True)) == ("-2.0 points", "-0.02")
    assert (size("mIoU", -0.02), size("MSE (log²)", -0.02)) == ("2.0 points", "-0.02".lstrip("-"))
    assert points(-0.00004) == "0.0" or points(-0.00004) == "-0.00"
